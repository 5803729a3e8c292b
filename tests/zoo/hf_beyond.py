"""The transformers models beyond the list: reached by the engine or refused with a reason."""

from __future__ import annotations

from functools import partial

from .handwritten import Headed
from .hf_models import PLAIN, RATIO, SWIN, TEXT, add, classify, texts_and_image, tokens

__all__: list[str] = []

beyond = partial(classify, listed=False)

beyond("data2vec", "Data2Vec", "Data2VecVision", PLAIN | {"use_relative_position_bias": True})
beyond("data2vec_shared", "Data2Vec", "Data2VecVision", PLAIN | {"use_shared_relative_position_bias": True})
beyond("vit_msn", "ViTMSN", "ViTMSN", PLAIN)
beyond("ijepa", "I-JEPA", "IJepa", PLAIN, notes="no class token")
beyond("swinv2", "SwinV2", "Swinv2", SWIN, both=False, notes="cosine attention, shifted windows")
beyond(
    "hiera", "Hiera", "Hiera",
    {
        "image_size": (32, 32), "patch_size": (7, 7), "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4],
        "num_query_pool": 1, "masked_unit_size": (2, 2), "masked_unit_attention": (True, False), "mlp_ratio": 2.75,
    }, both=False, notes="mask units, queries pooled",
)  # fmt: skip
LEVIT = {
    "image_size": 96, "hidden_sizes": [24, 32, 40], "num_attention_heads": [3, 4, 5], "depths": [1, 1, 1],
    "key_dim": [8, 8, 8],
}  # fmt: skip
beyond("levit", "LeViT", "Levit", LEVIT, both=False, notes="batch norm, keys narrower than values")
add(
    "levit_teacher", "LeViT", "LevitConfig", "LevitForImageClassificationWithTeacher", LEVIT, both=False, listed=False,
    notes="two heads, averaged",
)  # fmt: skip
VITDET = RATIO | {
    "pretrain_image_size": 32, "use_relative_position_embeddings": True, "window_block_indices": [0],
    "window_size": 3, "residual_block_indices": [1],
}  # fmt: skip
add(
    "vitdet", "VitDet", "VitDetConfig", "VitDetModel", VITDET, listed=False, both=False, out=tokens,
    notes="windows with padding, relative position terms; no head, so the residual stream is an output",
)  # fmt: skip
add(
    "sam", "SAM", "SamVisionConfig", "SamVisionModel",
    PLAIN | {"output_channels": 20, "window_size": 3, "global_attn_indexes": [1], "mlp_dim": 88}, listed=False,
    out=tokens, notes="windows with padding, relative position terms",
)  # fmt: skip
add(
    "siglip_dual", "SigLIP", "SiglipConfig", "SiglipModel",
    {"vision_config": PLAIN, "text_config": TEXT | {"projection_size": 32}},
    listed=False, example=texts_and_image(32, 50, 11), out=lambda result: result.logits_per_image,
    notes="both towers; 3 fixed texts; pooling head",
)  # fmt: skip
add(
    "aimv2", "AIMv2", "Aimv2VisionConfig", "Aimv2VisionModel", PLAIN, listed=False, out=lambda r: r.pooler_output,
    notes="RMS norm, SwiGLU, attention pooling",
)  # fmt: skip
add(
    "internvl", "InternViT", "InternVLVisionConfig", "InternVLVisionModel",
    PLAIN | {"image_size": (32, 32), "patch_size": (8, 8), "use_qk_norm": True, "norm_type": "rms_norm"}, listed=False,
    wrap=Headed, notes="RMS norm over all heads of q and of k; a linear head on the class token",
)  # fmt: skip
add(
    "yolos", "YOLOS", "YolosConfig", "YolosForObjectDetection",
    PLAIN | {"image_size": [32, 32], "num_detection_tokens": 5}, listed=False,
    notes="detection tokens, interpolated positions; classes and boxes",
)  # fmt: skip
PYRAMID = {"image_size": 32, "depths": [1, 2], "mlp_ratios": [3, 2]}
beyond(
    "pvt", "PVT", "Pvt",
    PYRAMID | {"num_encoder_blocks": 2, "sequence_reduction_ratios": [2, 1], "hidden_sizes": [16, 32],
               "patch_sizes": [4, 2], "strides": [4, 2], "num_attention_heads": [2, 4]},
    both=False, notes="keys and values of reduced resolution",
)  # fmt: skip
beyond(
    "pvt_v2", "PVT", "PvtV2",
    PYRAMID | {"num_encoder_blocks": 2, "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
               "strides": [4, 2], "num_attention_heads": [2, 4]},
    both=False, notes="keys and values of reduced resolution, depthwise MLP",
)  # fmt: skip
beyond(
    "segformer", "SegFormer", "Segformer",
    PYRAMID | {"num_encoder_blocks": 2, "sr_ratios": [2, 1], "hidden_sizes": [16, 32], "patch_sizes": [7, 3],
               "strides": [4, 2], "num_attention_heads": [2, 4]},
    notes="keys and values of reduced resolution, depthwise MLP",
)  # fmt: skip
beyond(
    "cvt", "CvT", "Cvt",
    {
        "patch_sizes": [7, 3], "patch_stride": [4, 2], "patch_padding": [2, 1], "embed_dim": [16, 32],
        "num_heads": [2, 4], "depth": [1, 2], "mlp_ratio": [2.75, 2.75], "attention_drop_rate": [0.0, 0.0],
        "drop_rate": [0.0, 0.0], "drop_path_rate": [0.0, 0.0], "qkv_bias": [True, True], "cls_token": [False, True],
        "qkv_projection_method": ["dw_bn", "dw_bn"], "kernel_qkv": [3, 3], "padding_kv": [1, 1], "stride_kv": [2, 2],
        "padding_q": [1, 1], "stride_q": [1, 1],
    }, both=False, notes="depthwise convolutions make q, k and v",
)  # fmt: skip
beyond(
    "mobilevit", "MobileViT", "MobileViT",
    {
        "image_size": 128, "hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [4, 6, 8, 10, 12, 14, 40],
        "mlp_ratio": 2.0, "expand_ratio": 2.0,
    }, both=False, notes="batch norm, convolutions and a transformer inside",
)  # fmt: skip
beyond(
    "mobilevitv2", "MobileViT", "MobileViTV2",
    {"image_size": 64, "width_multiplier": 0.125, "base_attn_unit_dims": [64, 128, 192], "n_attn_blocks": [1, 1, 1]},
    both=False, notes="separable self-attention",
)  # fmt: skip
beyond(
    "poolformer", "MetaFormer", "PoolFormer",
    {"image_size": 64, "depths": [1, 1, 1, 1], "hidden_sizes": [8, 16, 24, 32], "mlp_ratio": 3.0}, both=False,
    notes="pooling for attention",
)  # fmt: skip
beyond(
    "swiftformer", "SwiftFormer", "SwiftFormer",
    {"image_size": 64, "depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32], "mlp_ratio": 3}, both=False,
    notes="additive attention",
)  # fmt: skip
beyond(
    "focalnet", "FocalNet", "FocalNet",
    {
        "image_size": 32, "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "focal_levels": [2, 2],
        "focal_windows": [3, 3], "mlp_ratio": 2.75, "use_layerscale": True,
    }, both=False, notes="gated focal modulation for attention",
)  # fmt: skip
