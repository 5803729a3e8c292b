"""Small models, built offline from the installed libraries, that the engine is tested on."""

from . import handwritten, hf_beyond, hf_models, other, timm_beyond, timm_models, timm_variants
from .case import CASES, LEFT_OUT, Case, images, randomise_

__all__ = [
    "CASES",
    "LEFT_OUT",
    "Case",
    "handwritten",
    "hf_beyond",
    "hf_models",
    "images",
    "other",
    "randomise_",
    "timm_beyond",
    "timm_models",
    "timm_variants",
]
