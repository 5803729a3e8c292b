"""The torchvision models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .case import Case, images, logits, register

__all__: list[str] = []


def _vision_transformer(**kwargs: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models.vision_transformer import VisionTransformer

        model: nn.Module = VisionTransformer(
            image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=88, num_classes=10, **kwargs
        )
        return model.eval()

    return build


def _swin(block: str, downsample: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from torchvision.models import swin_transformer

        model: nn.Module = swin_transformer.SwinTransformer(
            patch_size=[2, 2], embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], mlp_ratio=2.75,
            num_classes=10, block=getattr(swin_transformer, block),
            downsample_layer=getattr(swin_transformer, downsample),
        )  # fmt: skip
        return model.eval()

    return build


def _maxvit() -> nn.Module:
    from torchvision.models.maxvit import MaxVit

    model: nn.Module = MaxVit(
        input_size=(32, 32), stem_channels=16, partition_size=4, block_channels=[16, 32], block_layers=[1, 1],
        head_dim=8, stochastic_depth_prob=0.0, num_classes=10,
    )  # fmt: skip
    return model.eval()


register(
    Case(
        "torchvision/vit_b_16", "ViT", _vision_transformer(), images(32), logits,
        notes="nn.MultiheadAttention, which checks its fused sizes",
    )
)  # fmt: skip
register(
    Case(
        "torchvision/swin_t", "Swin", _swin("SwinTransformerBlock", "PatchMerging"), images(32), logits, False,
        notes="attention is one function with the head count as an argument",
    )
)  # fmt: skip
register(
    Case(
        "torchvision/swin_v2_t", "SwinV2", _swin("SwinTransformerBlockV2", "PatchMergingV2"), images(32), logits, False,
        notes="cosine attention",
    )
)  # fmt: skip
register(Case("torchvision/maxvit_t", "MaxViT", _maxvit, images(32), logits, False, notes="block and grid attention"))
