"""What a layer's output loses without a unit, once the layer is fitted again: each unit by itself."""

from vitprune.score.readers import completed, read
from vitprune.score.reduce import reduce_slices
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size): the sum over the layers that read a unit of |w_j|^2 / [H^-1]_jj.

    H is the shrunk covariance of what the layer reads on the calibration images: the whole matrix, so that a unit that
    others can stand in for counts little. Query/key dims and branches, which no layer reads, count as in `energy`.

    Source: the optimal brain surgeon (Hassibi, Stork, NeurIPS 1992, equation 5) with the Hessian of a layer's squared
    error, as in OBC (Frantar, Alistarh, arXiv 2208.11580, equation 3), a column at a time.
    """
    readers, seen = read(inputs)
    found = {
        name: reduce_slices([r.costs().cpu().numpy() for r in group], inputs.reduction)
        for name, group in readers.items()
        if group
    }
    return completed(inputs, found, seen)


METHOD = Method(
    ScoreInfo("obs", "loss of a layer's output without the unit, after refit", "arXiv 2208.11580", ("data",)),
    compute,
)
