"""The second-order change of the loss when a unit goes, from the Hessian's diagonal."""

from vitprune.score.gradient import gradient_terms, mean_of
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size): mean over images of half the sum of (gradient x value)^2 over the unit's parameters.

    The Hessian's diagonal is that of the empirical Fisher matrix: squared gradients, image by image, so that there are
    as many backward passes as images. Unlike `fisher`, a unit's parameters are taken to act one by one: their terms
    cannot cancel.

    Source: optimal brain damage (LeCun, Denker, Solla, NeurIPS 1989, equation 5), summed over the group's members as
    in Torch-Pruning's Hessian importance (Fang et al., arXiv 2301.12900).
    """
    found = mean_of(gradient_terms(inputs, one_by_one=True, squares=True), 1)
    return {name: values / 2 for name, values in found.items()}


METHOD = Method(
    ScoreInfo(
        "hessian",
        "second-order change of the loss by the Hessian's diagonal",
        "arXiv 2301.12900",
        ("data", "labels", "gradients"),
        unscaled=True,
    ),
    compute,
)
