"""When training has nothing left to gain: neither accuracy nor cost moves."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.recover.settings import EpochRecord

LEAST = 1e-3  # of the dense model's cost, by which a cost must fall to count


def stalled(records: Sequence[EpochRecord], patience: int) -> bool:
    """Whether for `patience` epochs the validation top-1 has not risen and the cost has not fallen; 0: never.

    The top-1 is compared with the best since the cost last fell: before, the model was another, larger one. Epochs at
    whose end the cost is not yet where it is to go do not count. The decision depends on the records alone, so a run
    that was stopped and goes on ends where one that never stopped does.
    """
    best, lowest, since = -1.0, float("inf"), 0
    for record in records:
        cost = float("inf") if record.cost is None else record.cost
        if not record.settled or cost < lowest - LEAST:
            best, lowest, since = record.val_top1, cost, 0
        elif record.val_top1 > best:
            best, since = record.val_top1, 0
        else:
            since += 1
    return 0 < patience <= since
