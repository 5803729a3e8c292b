"""The empirical Fisher information of a factor on each unit."""

from vitprune.score.gradient import gradient_terms, mean_of
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size): mean over images of (sum of gradient x value over the unit's parameters)^2.

    Gradients are taken image by image, as the Fisher information asks for: as many backward passes as images.

    Source: NViT (Yang et al., arXiv 2110.04869, equation 5); the second-order term of a Hessian approximated by the
    empirical Fisher, as in SAViT (Zheng et al., NeurIPS 2022).
    """
    return mean_of(gradient_terms(inputs, one_by_one=True), 2)


METHOD = Method(
    ScoreInfo(
        "fisher",
        "Fisher information, image by image",
        "arXiv 2110.04869",
        ("data", "labels", "gradients"),
        unscaled=True,
    ),
    compute,
)
