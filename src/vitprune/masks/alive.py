"""Whether what the masks leave is still a model."""

from __future__ import annotations

import numpy as np

from vitprune.masks.gates import Gates

COLLAPSED = 0.75  # share of masks at their smallest size, from which on a model counts as dead


def collapsed(gates: Gates) -> str:
    """What the masks have closed of a model that is dead by now; "" for one that lives.

    Dead is a model of which three quarters of the masks are at their smallest size, those that keep as many units
    counted as one; or whose residual width is, all layers sharing its mask. Kinds whose smallest size was given are
    where they were allowed to go, and do not count.
    """
    layout = gates.layout
    first = np.cumsum([0, *(v.lanes for v in layout.vectors)])[:-1]
    small = gates.select.at_smallest(gates.hard).cpu().numpy()
    counted: set[int] = set()
    for v, cluster in zip(layout.vectors, layout.lane_cluster[first].tolist(), strict=True):
        if v.kind not in gates.floors:
            counted.add(cluster)
            if v.kind == "residual" and v.alone and small[cluster]:
                return f"{v.name} is down to {layout.smallest[cluster]} of {v.size} channels"
    share = float(small[sorted(counted)].mean()) if counted else 0.0
    return f"{100 * share:.0f} % of the masks are at their smallest size" if share >= COLLAPSED else ""
