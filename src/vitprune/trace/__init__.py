"""One trace of a model: what can be removed together, what it costs, what must stay and why."""

from vitprune.trace.graph import KINDS, Frozen, Graph, Group, Kind, Member, OpCost
from vitprune.trace.polynomial import Polynomial
from vitprune.trace.tracing import trace

__all__ = ["KINDS", "Frozen", "Graph", "Group", "Kind", "Member", "OpCost", "Polynomial", "trace"]
