"""The energy of what a unit adds to the layers that read it."""

from vitprune.score.activation import contribution
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size), see `vitprune.score.activation`.

    Source: the metric of Wanda (Sun et al., arXiv 2306.11695, equation 1), squared and summed over a column.
    """
    return contribution(inputs, central=False)


METHOD = Method(
    ScoreInfo(
        "energy", "energy that a unit adds to its readers (no labels)", "arXiv 2306.11695", ("data",), unscaled=True
    ),
    compute,
)
