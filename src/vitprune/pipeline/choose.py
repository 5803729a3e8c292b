"""What is taken where the user leaves the choice to us."""

from vitprune.score.registry import lookup


def chosen_method(name: str, images: bool) -> str:
    """The score's name; for "auto" the best one that can be had: "refit-error" with images, else "magnitude-l2".

    Raises ScoreError, listing the names, for an unknown one.
    """
    if name == "auto":
        return "refit-error" if images else "magnitude-l2"
    return lookup(name).info.name
