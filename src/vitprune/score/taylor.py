"""The first-order change of the loss when a unit goes."""

from vitprune.score.gradient import gradient_terms, mean_of
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size): mean over batches of |sum of gradient x value over the unit's parameters|.

    Source: Molchanov et al., arXiv 1906.10771, equation 8 without the square, summed over the group's members.
    """
    return mean_of(gradient_terms(inputs, one_by_one=False), 1)


METHOD = Method(
    ScoreInfo(
        "taylor", "first-order change of the loss", "arXiv 1906.10771", ("data", "labels", "gradients"), unscaled=True
    ),
    compute,
)
