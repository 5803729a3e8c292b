"""Root mean square of a unit's parameters."""

from vitprune.score.magnitude import mean_magnitude
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size) of sqrt(mean w^2).

    Source: Fang et al., arXiv 2301.12900, equation 5 (group L2 norm), per element so that unlike groups compare.
    """
    return mean_magnitude(inputs.graph, inputs.model, 2, inputs.reduction)


METHOD = Method(ScoreInfo("magnitude-l2", "root mean square of a unit's parameters", "arXiv 2301.12900"), compute)
