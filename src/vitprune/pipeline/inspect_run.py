"""What `vitprune inspect` tells of a model: rows first, printing after."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from vitprune import models
from vitprune.errors import listed
from vitprune.pipeline.opening import open_model
from vitprune.plan import Plan
from vitprune.report.terminal import print_table
from vitprune.trace import trace
from vitprune.trace.graph import Graph


@dataclass(frozen=True, slots=True)
class GroupRow:
    """One group and what hangs on it."""

    block: int | None
    name: str
    kind: str
    lanes: int
    size: int  # units per lane
    params: int  # parameters that would go with all of its units
    macs: int  # multiply-accumulates per image that would go with all of its units
    exact: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """A model's groups, costs and limits."""

    model: str
    params: int
    macs: int  # per image; FLOPs = 2 x MACs
    groups: tuple[GroupRow, ...]
    frozen: tuple[tuple[str, int, str], ...]  # (where, size, reason)
    cosize: tuple[tuple[str, ...], ...]
    unknown_ops: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"frozen": [dict(zip(("where", "size", "reason"), f, strict=True)) for f in self.frozen]}


def run_inspect(spec: str, allow_module: str | None = None) -> Inspection:
    """What can be removed from the model that `spec` names, what it costs, and what must stay. Weights are not loaded.

    Raises ModelError or StoreError when the model cannot be had or captured.
    """
    return inspect_model(spec, allow_module)[0]


def inspect_model(spec: str, allow_module: str | None = None) -> tuple[Inspection, Plan | None]:
    """As `run_inspect`, and the plan by which a saved folder's model was pruned."""
    opened = open_model(spec, weights=False, allow_module=allow_module)
    graph = trace(opened.model, (models.example(opened.loaded.preprocessing),))
    return inspect_graph(graph, spec, opened.loaded.notes), opened.plan


def inspect_graph(graph: Graph, name: str, notes: tuple[str, ...] = ()) -> Inspection:
    """The inspection of a traced model."""
    macs, params = graph.cost()
    rows: list[GroupRow] = []
    for g in graph.groups:
        less_macs, less_params = graph.cost({g.name: 0})
        rows.append(
            GroupRow(g.block, g.name, g.kind, g.lanes, g.size, params - less_params, macs - less_macs, g.exact, g.notes)
        )
    frozen = tuple((f.where, f.size, f.reason) for f in graph.frozen)
    return Inspection(name, params, macs, tuple(rows), frozen, graph.cosize, graph.unknown_ops, notes)


def print_inspection(found: Inspection) -> None:
    """Prints the inspection to standard output: a table by block, then what stays and why."""
    print(f"{found.model}: {found.params:,} parameters, {found.macs:,} MACs per image (FLOPs = 2 x MACs)")
    groups = sorted(found.groups, key=lambda r: -1 if r.block is None else r.block)
    lines = [
        [
            "-" if row.block is None else str(row.block),
            row.name,
            row.kind + ("" if row.exact else " (inexact)"),
            str(row.size) if row.lanes == 1 else f"{row.lanes} x {row.size}",
            f"{row.params:,}",
            f"{row.params / max(found.params, 1):.1%}",
            f"{row.macs:,}",
            f"{row.macs / max(found.macs, 1):.1%}",
        ]
        for row in groups
    ]
    headings = ["block", "group", "kind", "width", "parameters", "share", "MACs", "share"]
    ends = [i for i, (a, b) in enumerate(pairwise(groups)) if a.block != b.block]
    caption = "parameters, MACs: what goes with all units of a group; groups share some of it"
    print_table(headings, lines, left=(0, 1, 2), sections=ends, caption=caption)
    for row in found.groups:
        for note in row.notes:
            print(f"{row.name}: {note}")
    if found.frozen:
        print("not prunable:")
    by_reason: dict[str, list[str]] = {}
    for where, size, reason in found.frozen:
        by_reason.setdefault(reason, []).append(f"{where} ({size})")
    for reason, places in by_reason.items():
        print(f"  {reason}: {listed(places, separator='; ')}")
    for op in found.unknown_ops:
        print(f"operator without a rule, what it touches stays: {op}")
    for note in found.notes:
        print(f"note: {note}")
