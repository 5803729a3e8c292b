"""The decision, apart from any tensor: which units of which groups stay."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

from vitprune.errors import StoreError, listed

PLAN_VERSION = 1
KIND_NAMES = ("residual", "heads", "qk", "v", "mlp", "block")


class PlanError(StoreError):
    """A plan that is malformed or does not fit the model."""


class GroupLike(Protocol):
    """What a plan needs to know of a traced group."""

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def lane_group(self) -> str | None: ...
    @property
    def members(self) -> Sequence[Any]: ...


class GraphLike(Protocol):
    """What a plan needs to know of a traced model."""

    @property
    def groups(self) -> Sequence[GroupLike]: ...
    @property
    def fingerprint(self) -> str: ...


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """What stays of one group."""

    kind: str
    size: int  # units per lane before pruning
    lanes: int  # lanes before pruning (heads of a q/k or v group; else 1)
    kept: tuple[tuple[int, ...], ...]  # per lane the kept units, ascending, the same number in every lane

    @property
    def kept_size(self) -> int:
        """Units per lane that stay."""
        return len(self.kept[0])


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole pruning decision; everything before it decides, everything after it executes."""

    groups: Mapping[str, GroupPlan]
    fingerprint: str = ""  # of the traced structure, checked when the plan is applied
    asked: Mapping[str, Any] = field(default_factory=dict)  # e.g. {"macs": 0.5}
    obtained: Mapping[str, Any] = field(default_factory=dict)  # macs, params: value, dense value, ratio
    method: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)  # scope, kinds, round_to, minimum, seed, ...
    source: Mapping[str, Any] = field(default_factory=dict)  # how to rebuild the dense skeleton
    versions: Mapping[str, str] = field(default_factory=dict)
    version: int = PLAN_VERSION

    def __post_init__(self) -> None:
        for name in ("asked", "obtained", "settings", "source", "versions"):  # tuples -> lists, so that JSON is exact
            object.__setattr__(self, name, plain(getattr(self, name)))

    def sizes(self) -> dict[str, int]:
        """Kept size of every group."""
        return {name: g.kept_size for name, g in self.groups.items()}

    def pruned(self) -> tuple[str, ...]:
        """Names of the groups that lose units."""
        return tuple(name for name, g in self.groups.items() if g.kept_size < g.size)

    def noted(self, notes: Iterable[str]) -> Plan:
        """The same plan with further notes."""
        return replace(self, settings={**self.settings, "notes": [*self.settings.get("notes", ()), *notes]})

    def to_json(self) -> str:
        """The plan as readable JSON, a line per group; `Plan.from_json` gives an equal plan.

        Raises PlanError when a value of `settings`, `source`, ... is no JSON value.
        """
        parts = [f' "version": {self.version}', f' "method": {json.dumps(self.method)}']
        parts.append(f' "fingerprint": {json.dumps(self.fingerprint)}')
        for name in ("asked", "obtained", "settings", "source", "versions"):
            try:
                text = json.dumps(getattr(self, name), indent=1, sort_keys=True, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise PlanError(f"plan: {name} must hold JSON values only: {error}") from error
            parts.append(f' "{name}": ' + text.replace("\n", "\n "))
        rows = [f"  {json.dumps(name)}: {_group_json(g)}" for name, g in self.groups.items()]
        parts.append(' "groups": {\n' + ",\n".join(rows) + "\n }")
        return "{\n" + ",\n".join(parts) + "\n}\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that `to_json` wrote.

        Raises PlanError, saying what and where, for anything that is not a well-formed plan of this version.
        """
        from vitprune.planjson import read_plan

        return read_plan(text)

    def check(self, graph: GraphLike) -> None:
        """Pass when the plan was made for this traced structure.

        Raises PlanError for unknown or missing groups, other sizes, lanes or kinds, or another fingerprint.
        """
        traced = {g.name: g for g in graph.groups}
        for title, names in (
            ("has groups that the model lacks", [n for n in self.groups if n not in traced]),
            ("lacks groups of the model", [n for n in traced if n not in self.groups]),
        ):
            if names:
                told = listed([repr(n) for n in sorted(names)])
                raise PlanError(f"plan {title}: {told}; it was made for another model or library version")
        for name, own in self.groups.items():
            got, want = (own.kind, own.size, own.lanes), (traced[name].kind, traced[name].size, traced[name].lanes)
            if got != want:
                raise PlanError(
                    f"plan: group {name!r} is (kind, size, lanes) {got}, but the model's is {want}; "
                    "it was made for another model, or edited"
                )
            problem = kept_problem(own)
            if problem:
                raise PlanError(f"plan: group {name!r}: {problem}")
        if self.fingerprint and graph.fingerprint and self.fingerprint != graph.fingerprint:
            raise PlanError(
                f"plan: fingerprint {self.fingerprint[:16]} does not match the model's {graph.fingerprint[:16]}: the "
                "same group names and sizes, but parameters of other shapes behind them"
            )


def _group_json(group: GroupPlan) -> str:
    return json.dumps({"kind": group.kind, "size": group.size, "lanes": group.lanes, "kept": group.kept})


def plain(value: Any) -> Any:
    """`value` with mappings as dicts and tuples as lists, all the way down."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def kept_problem(group: GroupPlan) -> str:
    """What is wrong with the kept units of a group, or "" when nothing is."""
    if len(group.kept) != group.lanes:
        return f"kept must have a list for each of {group.lanes} lanes, but has {len(group.kept)}"
    for lane, kept in enumerate(group.kept):
        if len(kept) != len(group.kept[0]):
            return f"lane {lane} keeps {len(kept)} units, but lane 0 keeps {len(group.kept[0])}; all must keep as many"
        if any(b <= a for a, b in pairwise(kept)):
            return f"kept units of lane {lane} must be ascending and unique"
        if kept and (kept[0] < 0 or kept[-1] >= group.size):
            return f"kept units of lane {lane} must be in 0..{group.size - 1}, but hold {kept[0]}..{kept[-1]}"
    if not group.kept[0] and group.kind != "block":
        return "at least one unit must stay (only a whole block can go)"
    return ""


def identity(graph: GraphLike) -> Plan:
    """The plan that keeps everything."""
    return Plan({g.name: keep_all(g) for g in graph.groups}, fingerprint=graph.fingerprint)


def keep_all(group: GroupLike) -> GroupPlan:
    """The part of a plan that keeps all units of a group."""
    return GroupPlan(group.kind, group.size, group.lanes, (tuple(range(group.size)),) * group.lanes)
