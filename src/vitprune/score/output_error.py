"""What the model's output loses without a unit, the layers that read it refitted: one currency for all layers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from vitprune.arrays import Floats, Scores
from vitprune.calibrate import Sensitivity, sensitivities
from vitprune.calibrate.sensitivity import IMAGES
from vitprune.score.eliminate import eliminate
from vitprune.score.readers import completed, read
from vitprune.score.types import Method, ScoreError, ScoreInfo, ScoreInputs
from vitprune.trace.graph import Group


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size): the growth of the squared error of the class scores as each unit goes, in turn.

    As `refit-error`, but errors of a layer's outputs are weighted by how the model's output feels them, in positions
    and channels (`sensitivities`), so that scores of all layers, kinds and branches are in the same unit. Query/key
    dims, and others that no layer reads, count by what the output moves by without them, to first order.

    Source: the elimination of OBC (arXiv 2208.11580) on the Gauss-Newton matrix of the output, which is factored by
    layer into positions and channels as in K-FAC (Martens, Grosse, arXiv 1503.05671); Hutchinson's estimator.

    Raises ScoreError without images, and for a model through which gradients do not pass.
    """
    first, everything = _first(inputs.batches or ())
    felt = sensitivities(inputs.model, first, inputs.seed) if first else {}
    if first and not felt:
        raise ScoreError("method 'output-error' needs gradients through the model, but got none; take 'refit-error'")
    readers, seen = read(replace(inputs, batches=everything), felt)
    found = {name: eliminate(of_group) for name, of_group in readers.items() if of_group}
    return completed(inputs, found, seen, lambda group: _gates(group, felt))


def _first(batches: Iterable[Any]) -> tuple[list[Any], Iterable[Any]]:
    """The batches with the first images, and all batches, those included; they are asked for once."""
    rest, first, count = iter(batches), list[Any](), 0
    while count < IMAGES:
        batch = next(rest, None)
        if batch is None:
            break
        first.append(batch)
        count += len(batch if isinstance(batch, Tensor) else batch[0])
    return first, itertools.chain(first, rest)


def _gates(group: Group, felt: Mapping[str, Sensitivity]) -> Floats | None:
    """(lanes, size): the mean over the layers that make the units, whose own estimates agree; None without one."""
    made = [m for m in group.members if m.dim == 0 and m.tensor in felt]
    if not made:
        return None
    parts = [felt[m.tensor].gates.cpu().numpy()[m.index].sum(2) for m in made]
    mean: Floats = np.mean(parts, axis=0)
    return mean


METHOD = Method(
    ScoreInfo(
        "output-error",
        "what the class scores lose after the refit, units taken in turn",
        "arXiv 2208.11580",
        ("data", "gradients"),
        comparable=True,
        reduces=False,
    ),
    compute,
)
