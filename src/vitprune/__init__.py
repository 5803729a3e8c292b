"""Structured pruning of vision transformers: trace, prune, fine-tune, measure, save, and load anywhere.

```python
import vitprune

origin = vitprune.load_model("timm:vit_tiny_patch16_224")
graph = vitprune.trace(origin)
scores = vitprune.score(graph, origin, "magnitude-l2")
plan = vitprune.allocate(graph, scores, "macs=0.5")
small = vitprune.shrink(origin, graph, plan)
vitprune.save("small", small, plan, origin)
again = vitprune.load("small")
```
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"
__all__ = ["Plan", "Target", "VitpruneError", "allocate", "compare", "dg", "export", "load", "load_model", "prune"]
__all__ += ["refit", "rotate", "save", "score", "search", "shrink", "sweep", "trace"]
_API = "vitprune.pipeline.api"
# each is a sub-package, and a function of the public interface
_STAGES = ("allocate", "export", "refit", "rotate", "score", "search", "shrink", "trace")
_PLACES = {
    "Plan": "vitprune.plan",
    "Target": "vitprune.allocate",
    "VitpruneError": "vitprune.errors",
    "compare": _API,
    "dg": _API,
    "load": _API,
    "load_model": _API,
    "prune": _API,
    "save": _API,
    "sweep": _API,
}


class _Stage(ModuleType):
    """A stage's sub-package, which can also be called."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the function of this name in `vitprune.pipeline.api` gives."""
        return getattr(import_module(_API), self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Package(ModuleType):
    """This package: sub-packages of the stages become callable when they are imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _STAGES and isinstance(value, ModuleType):
            value.__class__ = _Stage
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """The public functions, imported when first used: `import vitprune` alone does not import torch."""
    if name in (*_STAGES, "recipes"):
        return import_module(f"vitprune.{name}")
    if name in _PLACES:
        return getattr(import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'vitprune' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES, *_STAGES})
