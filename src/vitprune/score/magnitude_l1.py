"""Mean absolute value of a unit's parameters."""

from vitprune.score.magnitude import mean_magnitude
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size) of mean |w|.

    Source: Li et al., arXiv 1608.08710, section 3.1, over all members of a unit instead of one filter, and per element.
    """
    return mean_magnitude(inputs.graph, inputs.model, 1, inputs.reduction)


METHOD = Method(ScoreInfo("magnitude-l1", "mean absolute value of a unit's parameters", "arXiv 1608.08710"), compute)
