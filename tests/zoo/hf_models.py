"""The transformers models: classes of the library, built from a small config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case, images, logits, register
from .handwritten import Headed

__all__ = ["PLAIN", "RATIO", "SWIN", "TEXT", "add", "classify", "texts_and_image", "tokens"]

# Axes of different meaning get different sizes: 4 heads of 8, hidden 88, 10 classes, 16 patches.
PLAIN: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 88,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
RATIO = {key: value for key, value in PLAIN.items() if key != "intermediate_size"} | {"mlp_ratio": 3}

Example = Callable[[int], tuple[Any, ...]]


def _builder(
    config_class: str, model_class: str, kwargs: dict[str, Any], attention: str | None, wrap: Callable[[Any], nn.Module]
) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        config = getattr(transformers, config_class)(num_labels=10, **kwargs)
        chosen = {} if attention is None else {"attn_implementation": attention}
        model: Any = getattr(transformers, model_class)._from_config(config, **chosen)
        assert attention is None or model.config._attn_implementation == attention
        return wrap(model).eval()

    return build


def _same(model: Any) -> nn.Module:
    assert isinstance(model, nn.Module)
    return model


def add(
    short: str,
    family: str,
    config_class: str,
    model_class: str,
    kwargs: dict[str, Any],
    *,
    both: bool = True,
    listed: bool = True,
    example: Example | None = None,
    out: Callable[[Any], Tensor] = logits,
    wrap: Callable[[Any], nn.Module] = _same,
    notes: str = "",
) -> None:
    """Registers "hf/short" in fused (sdpa) and eager attention, or once where the model has only one path."""
    size = kwargs.get("image_size", 32)
    given = example or images(size if isinstance(size, int) else size[0])
    for suffix, attention in (("/fused", "sdpa"), ("/eager", "eager")) if both else (("", None),):
        build = _builder(config_class, model_class, kwargs, attention, wrap)
        register(Case(f"hf/{short}{suffix}", family, build, given, out, listed, notes))


def classify(short: str, family: str, stem: str, kwargs: dict[str, Any], **options: Any) -> None:
    """Registers `{stem}ForImageClassification` with `{stem}Config`."""
    add(short, family, f"{stem}Config", f"{stem}ForImageClassification", kwargs, **options)


def tokens(result: Any) -> Tensor:
    """Returns the last hidden state, shape (batch, tokens, width) or (batch, channels, height, width)."""
    hidden: Tensor = result.last_hidden_state
    return hidden


def image_and_noise(size: int, patches: int) -> Example:
    """Returns batch -> (pixels, noise): the masking noise of a masked auto-encoder is fixed, shape (batch, patches)."""
    pixels = images(size)

    def example(batch: int) -> tuple[Any, ...]:
        noise = torch.rand(max(batch, 8), patches, generator=torch.Generator().manual_seed(1))[:batch]
        return (*pixels(batch), noise)

    return example


def texts_and_image(size: int, vocabulary: int, length: int) -> Example:
    """Returns batch -> (input_ids, pixels): always 3 texts, so that logits per image have shape (batch, 3)."""
    pixels = images(size)

    def example(batch: int) -> tuple[Any, ...]:
        ids = torch.randint(3, vocabulary - 1, (3, length), generator=torch.Generator().manual_seed(1))
        ids[:, -1] = vocabulary - 1
        return (ids, *pixels(batch))

    return example


classify("vit", "ViT", "ViT", PLAIN)
classify("deit", "DeiT", "DeiT", PLAIN)
add("deit_teacher", "DeiT", "DeiTConfig", "DeiTForImageClassificationWithTeacher", PLAIN, notes="two heads, averaged")
classify("beit_own_bias", "BEiT", "Beit", PLAIN | {"use_relative_position_bias": True})
classify("beit_shared_bias", "BEiT", "Beit", PLAIN | {"use_shared_relative_position_bias": True})
classify("beit_absolute", "BEiT", "Beit", PLAIN | {"use_absolute_position_embeddings": True, "use_mean_pooling": False})
classify("dinov2", "DINOv2", "Dinov2", RATIO)
classify("dinov2_swiglu", "DINOv2", "Dinov2", RATIO | {"use_swiglu_ffn": True}, notes="packed SwiGLU")
classify("dinov2_registers", "DINOv2", "Dinov2WithRegisters", RATIO)
DINOV3 = PLAIN | {"num_register_tokens": 3}
for _short, _extra, _note in (
    ("dinov3", {}, "rotary in halves"),
    ("dinov3_gated", {"use_gated_mlp": True, "hidden_act": "silu"}, "gated MLP"),
):
    add(
        _short, "DINOv3", "DINOv3ViTConfig", "DINOv3ViTModel", DINOV3 | _extra, wrap=Headed,
        notes=f"{_note}; the library has no classifier for it: a linear head on the class token",
    )  # fmt: skip
    add(
        f"{_short}_base", "DINOv3", "DINOv3ViTConfig", "DINOv3ViTModel", DINOV3 | _extra, out=tokens,
        notes=f"{_note}; no head, so the residual stream is an output",
    )  # fmt: skip
SWIN: dict[str, Any] = {
    "image_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
    "mlp_ratio": 2.75,
}  # fmt: skip
classify("swin", "Swin", "Swin", SWIN, notes="shifted windows")
add(
    "siglip", "SigLIP", "SiglipConfig", "SiglipForImageClassification", {"vision_config": PLAIN},
    notes="pooling head is dead code",
)  # fmt: skip
add("clip", "CLIP", "CLIPConfig", "CLIPForImageClassification", {"vision_config": PLAIN})
add(
    "clip_projection", "CLIP", "CLIPVisionConfig", "CLIPVisionModelWithProjection", PLAIN | {"projection_dim": 24},
    out=lambda result: result.image_embeds,
)  # fmt: skip
TEXT: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
    "max_position_embeddings": 11, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 0,
}  # fmt: skip
add(
    "clip_dual", "CLIP", "CLIPConfig", "CLIPModel",
    {"vision_config": PLAIN, "text_config": TEXT, "projection_dim": 20},
    example=texts_and_image(32, 50, 11), out=lambda result: result.logits_per_image,
    notes="both towers; 3 fixed texts",
)  # fmt: skip
MAE = PLAIN | {
    "decoder_hidden_size": 24, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 40,
}  # fmt: skip
add(
    "vitmae", "ViTMAE", "ViTMAEConfig", "ViTMAEModel", MAE | {"mask_ratio": 0.0}, example=image_and_noise(32, 16),
    wrap=Headed, notes="encoder without masking, a linear head on the class token",
)  # fmt: skip
add(
    "vitmae_base", "ViTMAE", "ViTMAEConfig", "ViTMAEModel", MAE | {"mask_ratio": 0.0}, example=image_and_noise(32, 16),
    out=tokens, notes="no head, so the residual stream is an output",
)  # fmt: skip
add(
    "vitmae_pretraining", "ViTMAE", "ViTMAEConfig", "ViTMAEForPreTraining", MAE | {"mask_ratio": 0.5},
    example=image_and_noise(32, 16), notes="encoder and decoder, masks half of the patches",
)  # fmt: skip
