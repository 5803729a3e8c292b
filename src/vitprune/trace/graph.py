"""What a trace says of a model: its groups, what they cost, what is frozen and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vitprune.trace.polynomial import Polynomial

Kind = Literal["residual", "heads", "qk", "v", "mlp", "block"]
KINDS: tuple[Kind, ...] = ("residual", "heads", "qk", "v", "mlp", "block")
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """The positions along one dim of one parameter or buffer that go with the units of a group."""

    tensor: str  # name in the model's state dict (non-persistent buffers: their attribute path)
    dim: int
    index: IndexArray  # (lanes, size, k): the k positions along `dim` that unit (lane, u) owns


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Units that can be removed, each together with all its members."""

    name: str  # "<module>:<kind>", unique in the graph
    kind: Kind
    size: int  # units per lane before pruning
    lanes: int  # 1, or the number of heads: each lane keeps its own units, every lane the same number
    lane_group: str | None  # the `heads` group whose units are the lanes
    members: tuple[Member, ...]
    module: str  # path of the module that holds the group ("" for the root)
    block: int | None  # index of the repeated block it stands in, None outside of any
    exact: bool = True  # False: removing units is not the same as zeroing them (reason in notes)
    notes: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()  # kind "block": the modules that the branch consists of, last one last

    @property
    def units(self) -> int:
        """Number of units over all lanes."""
        return self.lanes * self.size


@dataclass(frozen=True, slots=True)
class Frozen:
    """An axis that must keep its size."""

    where: str  # parameters that hold the axis, "name[dim]" joined by ", "
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class OpCost:
    """Multiply-accumulates of one operator, for the traced batch."""

    module: str
    op: str
    macs: Polynomial


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """Groups, costs and limits of one traced model."""

    groups: tuple[Group, ...]
    frozen: tuple[Frozen, ...]
    op_costs: tuple[OpCost, ...]
    macs: Polynomial  # multiply-accumulates per image, attention products included
    params: Polynomial  # number of parameters
    cosize: tuple[tuple[str, ...], ...]  # groups that keep equal sizes by default (q/k and v dims of a fused qkv)
    unknown_ops: tuple[str, ...]  # operators without a rule: what they touch is frozen
    batch: int  # images in the traced example
    fingerprint: str = ""  # digest of parameter shapes and groups
    detail: Any = field(default=None, repr=False)  # the engine's own record; None for graphs made by hand
    _by_name: dict[str, Group] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._by_name.update({g.name: g for g in self.groups})

    def __getitem__(self, name: str) -> Group:
        return self._by_name[name]

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def sizes(self) -> dict[str, int]:
        """Every group's size before pruning."""
        return {g.name: g.size for g in self.groups}

    def cost(self, sizes: Mapping[str, int] | None = None) -> tuple[int, int]:
        """(MACs per image, parameters) at the given group sizes; missing groups keep theirs."""
        full = self.sizes() | dict(sizes or {})
        return round(self.macs.evaluate(full)), round(self.params.evaluate(full))
