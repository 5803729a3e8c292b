"""The variance of what a unit adds to the layers that read it."""

from vitprune.score.activation import contribution
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size), see `vitprune.score.activation`.

    Source: the fluctuation metric of FLAP (An et al., arXiv 2312.11983, equation 6), over all layers that read a unit.
    """
    return contribution(inputs, central=True)


METHOD = Method(
    ScoreInfo(
        "variance", "variance that a unit adds to its readers (no labels)", "arXiv 2312.11983", ("data",), unscaled=True
    ),
    compute,
)
