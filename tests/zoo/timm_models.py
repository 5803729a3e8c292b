"""The timm models: entry points of the library, called with small widths."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from torch import nn

from .case import Case, images, logits, register

__all__ = ["PLAIN", "add", "entry", "of"]

# Axes of different meaning get different sizes where the model permits: 4 heads of 8, hidden 88, 10 classes.
PLAIN: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "mlp_ratio": 2.75,
    "num_classes": 10,
}  # fmt: skip
FUSED = "fused_attn"  # the attribute of timm modules that chooses
PATCH14 = PLAIN | {"img_size": 42, "patch_size": 14}


def has_fused(model: nn.Module) -> bool:
    """Returns whether a module of `model` chooses between fused and eager attention."""
    return any(hasattr(module, FUSED) for module in model.modules())


def _builder(make: Callable[[], nn.Module], fused: bool | None) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = make().eval()
        assert has_fused(model) == (fused is not None), "the case claims another choice of attention than the model"
        for module in model.modules():
            if fused is not None and hasattr(module, FUSED):
                setattr(module, FUSED, fused)
        return model

    return build


def add(
    short: str,
    family: str,
    make: Callable[[], nn.Module],
    size: int,
    *,
    both: bool = True,
    listed: bool = True,
    notes: str = "",
) -> None:
    """Registers "timm/short" in fused and eager attention, or once where the model has only one path."""
    choices: tuple[tuple[str, bool | None], ...] = (("/fused", True), ("/eager", False)) if both else (("", None),)
    for suffix, fused in choices:
        register(Case(f"timm/{short}{suffix}", family, _builder(make, fused), images(size), logits, listed, notes))


def entry(name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    """Returns a maker that calls the entry point `name` of timm with `kwargs` over its own arguments."""

    def make() -> nn.Module:
        import timm

        model = timm.create_model(name, pretrained=False, **kwargs)
        assert isinstance(model, nn.Module)
        return model

    return make


def of(module: str, name: str, **kwargs: Any) -> Callable[[], nn.Module]:
    """Returns a maker that calls the class `name` of `timm.models.module`."""

    def make() -> nn.Module:
        model = getattr(import_module(f"timm.models.{module}"), name)(**kwargs)
        assert isinstance(model, nn.Module)
        return model

    return make


def _vit_block(block: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm.models import vision_transformer

        kind = getattr(vision_transformer, block)
        model: nn.Module = vision_transformer.VisionTransformer(**PLAIN, block_fn=kind)
        return model

    return make


add("vit_tiny", "ViT", entry("vit_tiny_patch16_224", **PLAIN), 32)
add("vit_tiny_qk_norm", "ViT", entry("vit_tiny_patch16_224", **PLAIN, qk_norm=True), 32, notes="qk norm")
add(
    "vit_tiny_avg", "ViT", entry("vit_tiny_patch16_224", **PLAIN, global_pool="avg", class_token=False), 32,
    notes="global average pooling, no class token",
)  # fmt: skip
add("vit_parallel_scaling", "ViT", _vit_block("ParallelScalingBlock"), 32, notes="qkv and MLP in one linear")
add("vit_parallel_things", "ViT", _vit_block("ParallelThingsBlock"), 32, notes="two branches of each kind per block")
add("deit_tiny_distilled", "DeiT", entry("deit_tiny_distilled_patch16_224", **PLAIN), 32)
add("deit3_small", "DeiT", entry("deit3_small_patch16_224", **PLAIN), 32)
add("beit", "BEiT", entry("beit_base_patch16_224", **PLAIN), 32, notes="relative position bias per layer")
add(
    "beit_shared_bias", "BEiT",
    entry("beit_base_patch16_224", **PLAIN, use_rel_pos_bias=False, use_shared_rel_pos_bias=True), 32,
    notes="one relative position bias for all layers",
)  # fmt: skip
add("beitv2", "BEiT", entry("beitv2_base_patch16_224", **PLAIN), 32)
add("eva02_tiny", "EVA", entry("eva02_tiny_patch14_224", **PATCH14), 42, notes="SwiGLU, rotary in pairs")
add(
    "eva02_base", "EVA", entry("eva02_base_patch14_224", **PATCH14), 42,
    notes="SwiGLU with a norm on the hidden units, separate q, k, v",
)  # fmt: skip
add("dinov2", "DINOv2", entry("vit_small_patch14_dinov2", **PATCH14), 42)
add("dinov2_reg4", "DINOv2", entry("vit_small_patch14_reg4_dinov2", **PATCH14), 42)
add("dinov2_swiglu", "DINOv2", entry("vit_giant_patch14_dinov2", **PATCH14), 42, notes="packed SwiGLU")
add("dinov3", "DINOv3", entry("vit_small_patch16_dinov3", **PLAIN), 32, notes="rotary in halves")
add("dinov3_plus", "DINOv3", entry("vit_small_plus_patch16_dinov3", **PLAIN), 32, notes="SwiGLU")
add("siglip", "SigLIP", entry("vit_base_patch16_siglip_224", **PLAIN), 32, notes="attention pooling")
add("rope_mixed", "RoPE-ViT", entry("vit_small_patch16_rope_mixed_224", **PLAIN), 32, notes="learned frequencies")
add(
    "cait_xxs24", "CaiT", entry("cait_xxs24_224", **PLAIN), 32,
    notes="talking heads are eager in both; class attention is fused or eager",
)  # fmt: skip
add(
    "swin_tiny", "Swin",
    entry(
        "swin_tiny_patch4_window7_224", img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2),
        num_heads=(2, 4), mlp_ratio=2.75, num_classes=10,
    ), 32, notes="shifted windows",
)  # fmt: skip
add(
    "swinv2", "SwinV2",
    entry(
        "swinv2_tiny_window8_256", img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2),
        num_heads=(2, 4), mlp_ratio=2.75, num_classes=10,
    ), 32, both=False, notes="cosine attention, shifted windows",
)  # fmt: skip
add("xcit_nano", "XCiT", entry("xcit_nano_12_p16_224", **PLAIN | {"img_size": 64, "patch_size": 16}), 64,
    notes="softmax over channels: pruning them cannot be exact")  # fmt: skip
add(
    "crossvit", "CrossViT",
    entry(
        "crossvit_tiny_240", img_size=32, img_scale=(1.0, 0.75), patch_size=[8, 12], embed_dim=[24, 32],
        depth=[[1, 2, 0], [1, 1, 0]], num_heads=[3, 4], mlp_ratio=[2.5, 2.75, 1], num_classes=10,
    ), 32,
)  # fmt: skip
add(
    "convit", "ConViT", entry("convit_tiny", **PLAIN | {"local_up_to_layer": 1}), 32,
    both=False, notes="gated positional attention, then plain attention",
)  # fmt: skip


def _mvitv2(**kwargs: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

        cfg = MultiScaleVitCfg(
            depths=(1, 2), embed_dim=(16, 32), num_heads=(2, 4), mlp_ratio=2.75, stride_q=((1, 1), (2, 2)), **kwargs
        )
        model: nn.Module = MultiScaleVit(cfg, img_size=(32, 32), num_classes=10)
        return model

    return make


add("mvitv2", "MViTv2", _mvitv2(), 32, both=False, notes="pooled queries, keys and values; relative position terms")
add("mvitv2_cls", "MViTv2", _mvitv2(use_cls_token=True), 32, both=False, notes="class token beside pooling")
add(
    "hiera", "Hiera",
    entry(
        "hiera_tiny_224", img_size=(32, 32), embed_dim=16, num_heads=2, stages=(1, 2), q_pool=1,
        mask_unit_size=(2, 2), mask_unit_attn=(True, False), mlp_ratio=2.75, num_classes=10,
    ), 32,
)  # fmt: skip


def _mobilevit(version: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm.models import mobilevit as source
        from timm.models.byobnet import ByobNet, ByoModelCfg

        stem = source._inverted_residual_block(d=1, c=12, s=2, br=2.0)
        if version == 1:
            body = source._mobilevit_block(1, 20, 2, transformer_dim=32, transformer_depth=2, patch_size=2, br=2.0)
        else:
            body = source._mobilevitv2_block(1, 24, 2, transformer_depth=2)
        cfg = ByoModelCfg(
            blocks=(stem, body), stem_chs=8, stem_type="3x3", stem_pool="", downsample="", act_layer="silu",
            num_features=40 if version == 1 else 0,
        )  # fmt: skip
        model: nn.Module = ByobNet(cfg, num_classes=10)
        return model

    return make


add("mobilevit", "MobileViT", _mobilevit(1), 32, notes="batch norm, convolutions and a transformer inside")
add("mobilevitv2", "MobileViT", _mobilevit(2), 32, both=False, notes="separable self-attention")
add(
    "mixer", "Mixer",
    of("mlp_mixer", "MlpMixer", img_size=48, num_blocks=2, embed_dim=32, mlp_ratio=(0.75, 2.75), num_classes=10),
    48, both=False, notes="token-mixing MLP",
)  # fmt: skip
