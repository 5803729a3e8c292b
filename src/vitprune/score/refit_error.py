"""What a layer's output loses without a unit, once refitted and given that the less important ones are gone."""

from vitprune.score.eliminate import eliminate
from vitprune.score.readers import completed, read
from vitprune.score.types import Method, ScoreInfo, ScoreInputs, Scores


def compute(inputs: ScoreInputs) -> Scores:
    """Group name -> (lanes, size): the growth of the refitted layers' squared error as each unit goes, in turn.

    Units go one after the other, the cheapest first (in every lane one per round), and the layers that read them are
    refitted in between: of two units that say the same, the second is dear once the first is gone. Query/key dims and
    branches, which no layer reads, count as in `energy`.

    Source: the greedy optimal brain surgeon of OBC (Frantar, Alistarh, arXiv 2208.11580, algorithm 1) on whole columns,
    as in ZipLM (Kurtic et al., arXiv 2302.04089).
    """
    readers, seen = read(inputs)
    return completed(inputs, {name: eliminate(found) for name, found in readers.items() if found}, seen)


METHOD = Method(
    ScoreInfo(
        "refit-error", "loss left after the refit, units taken in turn", "arXiv 2302.04089", ("data",), reduces=False
    ),
    compute,
)
