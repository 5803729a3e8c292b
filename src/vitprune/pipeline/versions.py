"""What ran."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def versions() -> dict[str, str]:
    """Versions of vitprune and of the libraries that decide what a model computes; those not installed are left out."""
    found: dict[str, str] = {}
    for name in ("vitprune", "torch", "timm", "transformers", "torchvision"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
