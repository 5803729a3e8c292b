"""The table of scores."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np
from torch import nn

from vitprune.score import (
    energy,
    fisher,
    hessian,
    lamp,
    magnitude_l1,
    magnitude_l2,
    obs,
    output_error,
    random,
    refit_error,
    taylor,
    variance,
)
from vitprune.score.reduce import check_choices, normalise
from vitprune.score.types import Method, ScoreError, ScoreInfo, ScoreInputs, Scores
from vitprune.trace.graph import Graph

__all__ = ["METHODS", "Method", "ScoreInfo", "ScoreInputs", "Scores", "lookup", "register", "score"]

METHODS: dict[str, Method] = {
    "magnitude-l2": magnitude_l2.METHOD,
    "magnitude-l1": magnitude_l1.METHOD,
    "random": random.METHOD,
    "lamp": lamp.METHOD,
    "taylor": taylor.METHOD,
    "fisher": fisher.METHOD,
    "hessian": hessian.METHOD,
    "energy": energy.METHOD,
    "variance": variance.METHOD,
    "obs": obs.METHOD,
    "refit-error": refit_error.METHOD,
    "output-error": output_error.METHOD,
}


def register(method: Method) -> Method:
    """`method`, now found under its name. Raises ScoreError when the name is taken."""
    if method.info.name in METHODS:
        raise ScoreError(f"score {method.info.name!r} is registered already; choose another name")
    METHODS[method.info.name] = method
    return method


def lookup(name: str) -> Method:
    """The score of that name. Raises ScoreError, listing the names and the nearest one, when there is none."""
    if name in METHODS:
        return METHODS[name]
    near = get_close_matches(name, METHODS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ScoreError(f"method must be one of {', '.join(METHODS)}, but got {name!r}{hint}")


def check_images(method: str, given: bool) -> None:
    """Pass when the method needs no images, or there are some. Raises ScoreError that names those that need none."""
    if "data" in lookup(method).info.needs and not given:
        others = ", ".join(name for name, known in METHODS.items() if "data" not in known.info.needs)
        raise ScoreError(
            f"method {method!r} needs calibration images, but got none; give some (batches=, or --calibration N on the "
            f"command line), or take a method that looks at weights alone: {others}"
        )


def score(
    graph: Graph,
    model: nn.Module,
    method: str = "magnitude-l2",
    seed: int = 0,
    batches: Iterable[Any] | None = None,
    kinds: Iterable[str] | None = None,
    reduction: str = "default",
    normalisation: str = "none",
) -> Scores:
    """Importance of every unit of every group: name -> float64 (lanes, size), larger is more important.

    kinds: those whose scores will be looked at; the other groups may get any value (some methods save much time).
    reduction: how the slices behind a unit (the rows that make it, the columns that read it) become one number:
    "default" (as the method's citation has it), "sum", "mean", "max". normalisation: of every group's scores before
    they are compared with other groups': "none", "mean", "max", "sum" (divide by it) or "standard".

    Raises ScoreError for an unknown method, missing data, or scores that are not finite (with the group's name).
    """
    chosen = lookup(method)
    check_choices(reduction, normalisation)
    if reduction != "default" and not chosen.info.reduces:
        others = ", ".join(name for name, known in METHODS.items() if known.info.reduces)
        raise ScoreError(
            f"method {method!r} scores whole units and takes no reduction, but got {reduction!r}; leave it out or take "
            f"one of {others}"
        )
    check_images(method, batches is not None)
    scores = chosen.compute(
        ScoreInputs(graph, model, seed, batches, reduction, None if kinds is None else frozenset(kinds))
    )
    for group in graph.groups:
        values = scores[group.name]
        assert values.shape == (group.lanes, group.size) and values.dtype == np.float64, (method, group.name)
        if not np.isfinite(values).all():
            raise ScoreError(
                f"method {method!r}: the weights behind group {group.name!r} give scores that are not finite; look for "
                "NaN or infinite weights there, or score the model in float32"
            )
    return normalise(scores, normalisation)
