"""Variants of the plain vision transformer of timm beyond the list: attention, positions and stems of other kinds."""

from __future__ import annotations

from functools import partial

from torch import nn

from .timm_models import PLAIN, add, entry, of

__all__: list[str] = []

beyond = partial(add, listed=False)

ROPE = PLAIN | {"attn_type": "rope", "use_rot_pos_emb": True, "use_abs_pos_emb": False}

beyond(
    "eva_gqa", "EVA", of("eva", "Eva", **ROPE, num_kv_heads=2, qkv_fused=False), 32,
    notes="grouped queries: 4 heads of queries, 2 of keys and values",
)  # fmt: skip
beyond("eva_qk_norm", "EVA", of("eva", "Eva", **ROPE, qk_norm=True, scale_attn_inner=True), 32, notes="inner norm")
beyond("naflexvit", "NaFlexViT", entry("naflexvit_base_patch16_gap", **PLAIN), 32, notes="positions by interpolation")
beyond("naflexvit_map", "NaFlexViT", entry("naflexvit_base_patch16_map", **PLAIN), 32, notes="attention pooling")
RELPOS = PLAIN | {"rel_pos_dim": 20}
beyond("relpos", "ViT relpos", entry("vit_relpos_small_patch16_224", **RELPOS), 32, notes="positions by an MLP")
beyond("srelpos", "ViT relpos", entry("vit_srelpos_small_patch16_224", **RELPOS), 32, notes="shared positions")
beyond("relpos_rpn", "ViT relpos", entry("vit_relpos_base_patch16_rpn_224", **RELPOS), 32, notes="norm after branch")
beyond("vit_diff", "ViT", of("vision_transformer", "VisionTransformer", **PLAIN, attn_layer="diff"), 32,
       notes="differential attention: two maps subtracted")  # fmt: skip
beyond("vit_dpwee", "ViT", entry("vit_dpwee_patch16_reg1_gap_256", **PLAIN), 32, notes="differential, parallel")


def _hybrid() -> nn.Module:
    from timm.layers import GroupNormAct, HybridEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    backbone = ResNetV2(
        layers=(1, 1), channels=(64, 96), stem_chs=16, num_classes=0, global_pool="", preact=False, stem_type="same",
        conv_layer=StdConv2dSame, norm_layer=partial(GroupNormAct, num_groups=4),
    )  # fmt: skip
    embed = partial(HybridEmbed, backbone=backbone)
    model: nn.Module = VisionTransformer(**PLAIN | {"patch_size": 1}, embed_layer=embed)
    return model


beyond("vit_hybrid", "ViT", _hybrid, 32, notes="ResNet stem: weight-standardised convolutions, group norm")
beyond("vit_clip", "ViT", entry("vit_base_patch16_clip_224", **PLAIN), 32, notes="norm before the blocks")
beyond(
    "vit_norms", "ViT",
    of("vision_transformer", "VisionTransformer", **PLAIN, scale_attn_norm=True, scale_mlp_norm=True, qkv_bias=False),
    32, notes="norms inside attention and MLP, over heads x dims and over hidden units",
)  # fmt: skip
beyond("vit_dynamic", "ViT", entry("vit_tiny_patch16_224", **PLAIN, dynamic_img_size=True), 32)
beyond("pe_core", "EVA", entry("vit_pe_core_tiny_patch16_384", **PLAIN), 32, notes="rotary, attention pooling")
