"""What is taken where the user leaves the choice to us."""

from typing import Literal

from vitprune.allocate import DEFAULT_SCOPE, Scope
from vitprune.score.registry import check_images, lookup

Auto = Literal["auto"]


def chosen_method(name: str, images: bool) -> str:
    """The score's name; for "auto" the best one that can be had: "output-error" with images, else "magnitude-l2".

    Raises ScoreError, listing the names, for an unknown one, and for one that needs images where there are none.
    """
    if name == "auto":
        return "output-error" if images else "magnitude-l2"
    check_images(name, images)
    return lookup(name).info.name


def chosen_scope(name: Scope | Auto, method: str) -> Scope:
    """The scope's name; for "auto" "per-cost" where the method's scores compare across layers, else "local".

    Raises ScoreError for an unknown method.
    """
    if name == "auto":
        return "per-cost" if lookup(method).info.comparable else DEFAULT_SCOPE
    return name
