"""Uniform random scores: the baseline that every other score must beat."""

from __future__ import annotations

from zlib import crc32

import numpy as np

from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size) uniform in [0, 1), the same for the same seed and group name."""
    return {
        g.name: np.random.default_rng([inputs.seed, crc32(g.name.encode())]).random((g.lanes, g.size))
        for g in inputs.graph.groups
    }


METHOD = Method(ScoreInfo("random", "uniform random numbers, a baseline", "", follows=False, reduces=False), compute)
