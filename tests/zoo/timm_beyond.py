"""The timm models beyond the list: reached by the engine or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from .timm_models import PLAIN, add, entry, of

__all__: list[str] = []

SAM = PLAIN | {"window_size": 3, "global_attn_indexes": [1], "use_rel_pos": True}
beyond = partial(add, listed=False)

beyond("samvit", "SAM", entry("samvit_base_patch16", **SAM | {"neck_chans": 20}), 32, notes="windows with padding")
beyond("samvit_no_neck", "SAM", entry("samvit_base_patch16_224", **SAM), 32, notes="windows with padding")
beyond(
    "volo", "VOLO",
    of(
        "volo", "VOLO", layers=(1, 1), img_size=32, patch_size=4, stem_hidden_dim=12, embed_dims=(24, 32),
        num_heads=(3, 4), downsamples=(True, False), outlook_attention=(True, False), mlp_ratio=2.75, num_classes=10,
    ), 32, notes="outlook attention with im2col and fold",
)  # fmt: skip
TNT = PLAIN | {"num_heads_outer": 4, "num_heads_inner": 3, "inner_dim": 12, "first_stride": 2}
TNT.pop("num_heads")
beyond("tnt", "TNT", entry("tnt_s_patch16_224", **TNT), 32, both=False, notes="transformer within patches")
beyond(
    "tnt_legacy", "TNT", entry("tnt_s_legacy_patch16_224", **TNT), 32, both=False, notes="transformer within patches"
)
beyond(
    "davit", "DaViT",
    of("davit", "DaVit", depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), window_size=4, mlp_ratio=2.75,
       num_classes=10),
    32, notes="window attention and attention over channels",
)  # fmt: skip
COAT: dict[str, Any] = {
    "img_size": 64, "patch_size": 4, "num_heads": 8, "serial_depths": [1, 1, 1, 1], "num_classes": 10,
}  # fmt: skip
beyond(
    "coat", "CoaT",
    entry("coat_tiny", **COAT, embed_dims=[32, 32, 32, 32], mlp_ratios=[2.75] * 4, parallel_depth=1), 64,
    notes="factorised attention with a softmax over keys, parallel scales", both=False,
)  # fmt: skip
beyond(
    "coat_lite", "CoaT", entry("coat_lite_tiny", **COAT, embed_dims=[32, 40, 48, 64], mlp_ratios=[2, 2, 1.5, 1.5]), 64,
    notes="factorised attention with a softmax over keys", both=False,
)  # fmt: skip


def _maxxvit(blocks: tuple[str, ...], conv: dict[str, Any], transformer: dict[str, Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from timm.models import maxxvit

        cfg = maxxvit.MaxxVitCfg(
            embed_dim=(16, 32), depths=(1, 1), block_type=blocks, stem_width=(8, 16),
            conv_cfg=maxxvit.MaxxVitConvCfg(**conv),
            transformer_cfg=maxxvit.MaxxVitTransformerCfg(
                dim_head=8, window_size=(4, 4), grid_size=(4, 4), expand_ratio=2.75, **transformer
            ),
        )  # fmt: skip
        model: nn.Module = maxxvit.MaxxVit(cfg, img_size=32, num_classes=10)
        return model

    return make


beyond("maxvit", "MaxViT", _maxxvit(("M", "M"), {}, {}), 32, notes="block and grid attention, MBConv with SE")
beyond(
    "maxvit_rmlp", "MaxViT", _maxxvit(("M", "M"), {}, {"rel_pos_type": "mlp", "rel_pos_dim": 20, "init_values": 1e-6}),
    32, notes="relative position by an MLP",
)  # fmt: skip
beyond(
    "maxxvit_nchw", "MaxViT",
    _maxxvit(("M", "M"), {"block_type": "convnext", "norm_layer": "layernorm2d", "norm_layer_cl": "layernorm"},
             {"use_nchw_attn": True}),
    32, notes="ConvNeXt blocks, channels-first attention",
)  # fmt: skip
beyond("coatnet", "CoAtNet", _maxxvit(("C", "T"), {}, {}), 32, notes="MBConv, then global attention")
LEVIT: dict[str, Any] = {
    "img_size": 96, "embed_dim": (24, 32, 40), "key_dim": 8, "num_heads": (2, 3, 4), "depth": (1, 1, 1),
    "num_classes": 10,
}  # fmt: skip
beyond("levit", "LeViT", entry("levit_128s", **LEVIT), 96, both=False, notes="batch norm, keys narrower than values")
beyond("levit_conv", "LeViT", entry("levit_conv_128s", **LEVIT), 96, both=False, notes="as LeViT with 1x1 convolutions")
beyond(
    "pvt_v2", "PVT", entry("pvt_v2_b0", depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4), sr_ratios=(2, 1),
                           mlp_ratios=(3, 2.75), num_classes=10),
    32, notes="keys and values of reduced resolution",
)  # fmt: skip
beyond(
    "pvt_v2_linear", "PVT", entry("pvt_v2_b2_li", depths=(1, 1), embed_dims=(16, 32), num_heads=(2, 4),
                                  sr_ratios=(2, 1), mlp_ratios=(3, 2.75), num_classes=10),
    64, notes="keys and values pooled to 7x7",
)  # fmt: skip
TWINS: dict[str, Any] = {
    "img_size": 32, "patch_size": 2, "embed_dims": [16, 32], "num_heads": [2, 4], "mlp_ratios": [3, 2.75],
    "depths": [2, 2], "sr_ratios": [2, 1], "num_classes": 10,
}  # fmt: skip
beyond("twins_svt", "Twins", entry("twins_svt_small", **TWINS, wss=[4, 4]), 32, notes="local, then reduced attention")
beyond("twins_pcpvt", "Twins", entry("twins_pcpvt_small", **TWINS), 32)
beyond(
    "efficientformer", "EfficientFormer",
    entry("efficientformer_l1", depths=(1, 2), embed_dims=(16, 32), downsamples=(False, True), num_vit=1,
          mlp_ratios=3, num_classes=10, img_size=56),
    56, both=False, notes="pooling blocks, then attention with a learned bias",
)  # fmt: skip
beyond(
    "poolformer", "MetaFormer",
    of("metaformer", "MetaFormer", depths=(1, 1), dims=(16, 32), num_classes=10, use_mlp_head=False,
       layer_scale_init_values=1e-5, res_scale_init_values=None),
    32, both=False, notes="pooling for attention",
)  # fmt: skip


def _caformer() -> nn.Module:
    from timm.models import metaformer

    model: nn.Module = metaformer.MetaFormer(
        depths=(1, 1), dims=(16, 32), token_mixers=[metaformer.SepConv, metaformer.Attention],
        norm_layers=[metaformer.LayerNorm2dNoBias, metaformer.LayerNormNoBias], res_scale_init_values=(None, 1.0),
        num_classes=10,
    )  # fmt: skip
    return model


beyond("caformer", "MetaFormer", _caformer, 32, notes="separable convolutions, then attention of 32-wide heads")
beyond(
    "edgenext", "EdgeNeXt",
    of("edgenext", "EdgeNeXt", dims=(8, 16, 24, 32), depths=(1, 2, 1, 1), global_block_counts=(0, 1, 0, 1),
       heads=(2, 4, 4, 4), expand_ratio=3, num_classes=10),
    64, both=False, notes="attention over channels",
)  # fmt: skip
beyond(
    "nest", "NesT",
    of("nest", "Nest", img_size=32, patch_size=4, num_levels=2, embed_dims=(16, 32), num_heads=(2, 4), depths=(1, 1),
       mlp_ratio=2.75, num_classes=10, drop_path_rate=0.0),
    32, notes="attention within blocks of the image",
)  # fmt: skip
beyond(
    "gcvit", "GCViT",
    of("gcvit", "GlobalContextVit", img_size=32, window_ratio=(8, 8), embed_dim=16, depths=(2, 2), num_heads=(2, 4),
       mlp_ratio=2.75, num_classes=10, layer_scale=1e-5),
    32, both=False, notes="local windows and global queries",
)  # fmt: skip
beyond(
    "visformer", "Visformer",
    entry("visformer_tiny", img_size=64, patch_size=8, init_channels=8, embed_dim=32, depth=(1, 1, 1), num_heads=4,
          mlp_ratio=2.75, group=4, num_classes=10),
    64, notes="grouped convolutions, then attention by convolution",
)  # fmt: skip
beyond(
    "pit", "PiT",
    of("pit", "PoolingVisionTransformer", img_size=32, patch_size=8, stride=4, base_dims=(8, 8), depth=(1, 1),
       heads=(2, 4), mlp_ratio=2.75, num_classes=10),
    32, notes="pooling by grouped convolution",
)  # fmt: skip
beyond(
    "tiny_vit", "TinyViT",
    of("tiny_vit", "TinyVit", embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 4), window_sizes=(4, 4),
       mlp_ratio=2.75, num_classes=10),
    32, notes="MBConv, then windows",
)  # fmt: skip
beyond(
    "efficientvit_msra", "EfficientViT",
    of("efficientvit_msra", "EfficientVitMsra", img_size=64, embed_dim=(32, 48), key_dim=(8, 8), depth=(1, 1),
       num_heads=(4, 4), window_size=(4, 4), down_ops=(("", 1), ("subsample", 2)), num_classes=10),
    64, both=False, notes="cascaded groups",
)  # fmt: skip
beyond(
    "efficientvit_mit", "EfficientViT",
    of("efficientvit_mit", "EfficientVit", widths=(8, 16, 24), depths=(1, 1, 1), head_dim=8, head_widths=(20, 28),
       num_classes=10),
    32, both=False, notes="linear attention, ReLU kernel",
)  # fmt: skip
beyond(
    "swinv2_cr", "SwinV2",
    of("swin_transformer_v2_cr", "SwinTransformerV2Cr", img_size=(32, 32), patch_size=2, window_size=4, embed_dim=16,
       depths=(2, 2), num_heads=(2, 4), mlp_ratio=2.75, num_classes=10),
    32, both=False, notes="cosine attention, positions by an MLP",
)  # fmt: skip
beyond(
    "hieradet", "HieraDet",
    of("hieradet_sam2", "HieraDet", embed_dim=16, num_heads=2, q_pool=1, stages=(1, 2), window_spec=(4, 2),
       global_att_blocks=(2,), global_pos_size=(4, 4), num_classes=10),
    32, notes="windows, queries pooled",
)  # fmt: skip
for _name, _class, _sizes in (
    ("resmlp", "ResBlock", {"mlp_ratio": 2.75}),
    ("gmlp", "SpatialGatingBlock", {"mlp_ratio": 3}),
):

    def _mixer(block: str = _class, sizes: dict[str, Any] = _sizes) -> nn.Module:
        from timm.models import mlp_mixer

        layer = {"mlp_layer": mlp_mixer.GatedMlp} if block == "SpatialGatingBlock" else {}
        model: nn.Module = mlp_mixer.MlpMixer(
            img_size=48, num_blocks=2, embed_dim=32, num_classes=10, block_layer=getattr(mlp_mixer, block), **sizes,
            **layer,
        )  # fmt: skip
        return model

    beyond(_name, "Mixer", _mixer, 48, both=False, notes="token-mixing linear layers")


beyond(
    "focalnet", "FocalNet",
    of("focalnet", "FocalNet", embed_dim=16, depths=(1, 2), mlp_ratio=2.75, focal_levels=(2, 2), focal_windows=(3, 3),
       layerscale_value=1e-4, num_classes=10),
    32, both=False, notes="gated focal modulation for attention",
)  # fmt: skip
beyond(
    "convnext", "ConvNeXt", of("convnext", "ConvNeXt", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=10,
                               use_grn=True), 64,
    both=False, notes="no attention; response normalisation over hidden units",
)  # fmt: skip
beyond(
    "swiftformer", "SwiftFormer",
    of("swiftformer", "SwiftFormer", layers=[1, 1, 1, 1], embed_dims=[8, 16, 24, 32], num_classes=10), 64, both=False,
    notes="additive attention",
)  # fmt: skip
beyond(
    "shvit", "SHViT",
    of("shvit", "SHViT", embed_dim=(16, 24, 32), partial_dim=(8, 8, 12), qk_dim=(6, 6, 6), depth=(1, 1, 1),
       num_classes=10),
    64, both=False, notes="one head on a part of the channels",
)  # fmt: skip
