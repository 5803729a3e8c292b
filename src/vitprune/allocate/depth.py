"""Whole branches as candidates: what a removed one takes with it."""

from __future__ import annotations

from collections.abc import Collection

from vitprune.trace.graph import Graph


def gone_with(graph: Graph, blocks: Collection[str]) -> frozenset[str]:
    """Names of the groups that cost nothing without `blocks`: those inside of removed branches.

    A group lies inside of the branches that are a factor of every term of the costs that it has a part in.
    """
    if not blocks:
        return frozenset()
    branches = {g.name for g in graph.groups if g.kind == "block"}
    around: dict[str, set[str]] = {}
    for names, _ in (*graph.macs.terms, *graph.params.terms):
        within = branches.intersection(names)
        for name in set(names):
            around[name] = around[name] & within if name in around else set(within)
    return frozenset(name for name, found in around.items() if found.intersection(blocks) - {name})
