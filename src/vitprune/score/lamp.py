"""A unit's energy as a share of the energy of all units of its group that are no smaller."""

import numpy as np

from vitprune.arrays import Floats
from vitprune.score.magnitude import mean_magnitude
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size), in (0, 1]; the largest unit of every group has 1, which makes groups comparable.

    Whole branches are the units of one group.

    Source: Lee et al., arXiv 2010.07611, equation 4, with units in the place of weights and groups in that of layers.
    """
    magnitudes = mean_magnitude(inputs.graph, inputs.model, 2, inputs.reduction)
    found = {name: _share(values**2) for name, values in magnitudes.items()}
    blocks = [g.name for g in inputs.graph.groups if g.kind == "block"]
    if blocks:
        among = _share(np.concatenate([magnitudes[name] for name in blocks]) ** 2)
        found |= {name: among[i : i + 1] for i, name in enumerate(blocks)}
    return found


def _share(energy: Floats) -> Floats:
    flat = energy.ravel()
    order = np.argsort(-flat, kind="stable")
    among = np.empty_like(flat)
    among[order] = np.cumsum(flat[order])
    same: Floats = np.divide(flat, among, out=np.zeros_like(flat), where=among > 0).reshape(energy.shape)
    return same


METHOD = Method(ScoreInfo("lamp", "energy as a share of all no smaller units", "arXiv 2010.07611"), compute)
