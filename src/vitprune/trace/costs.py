"""Multiply-accumulates and parameters as polynomials of the group sizes."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np

from vitprune.trace.graph import OpCost
from vitprune.trace.groups import Units
from vitprune.trace.labels import Array, Solved
from vitprune.trace.polynomial import Monomial, Polynomial
from vitprune.trace.propagate import Propagated
from vitprune.trace.walk import AxisSize


class AxisPolynomials:
    """The size of any axis as a polynomial: a sum over the groups that have positions on it."""

    def __init__(self, solved: Solved, units: Units) -> None:
        self.solved, self.units = solved, units
        self.cache: dict[bytes, Polynomial] = {}

    def __call__(self, axis: AxisSize) -> Polynomial:
        """Exact for every plan that keeps as many units in each lane."""
        if not axis.labels:
            return Polynomial.constant(axis.size)
        finest = axis.labels[-1]
        key = b"|".join(line.tobytes() for line in axis.labels)
        if key not in self.cache:
            self.cache[key] = self._size(finest, axis.labels[:-1])
        return self.cache[key]

    def _size(self, line: Array, coarse: tuple[Array, ...]) -> Polynomial:
        s, u = self.solved, self.units
        lone = int((line < 0).sum())
        line, coarse = line[line >= 0], tuple(c[line >= 0] for c in coarse)
        own_groups = u.group[s.cls[line]]
        for g in np.unique(own_groups[own_groups >= 0]).tolist():
            if len(np.unique(s.cls[line][own_groups == g])) < 2 <= u.groups[g].size:
                own_groups = np.where(own_groups == g, -1, own_groups)  # all of one unit, that another axis counts
        at, covering = s.covers.of(s.own[line])
        at = np.concatenate([at, *(np.flatnonzero(level >= 0) for level in coarse)])
        covering = np.concatenate([covering, *(s.cls[level[level >= 0]] for level in coarse)])
        over = u.group[covering]
        ok = over >= 0
        at, covering, over = at[ok], covering[ok], over[ok]
        key, patterns = own_groups + 1, []  # per position: a number that is equal where the groups are
        for g in np.unique(over).tolist():
            if len(np.unique(covering[over == g])) < 2:
                continue  # constant: a head of its own axis, not of this one
            under = np.zeros(len(line), dtype=bool)
            under[at[over == g]] = True
            under &= own_groups != g
            patterns.append((g, under))
            key = 2 * np.unique(key, return_inverse=True)[1] + under
        _, first, counts = np.unique(key, return_index=True, return_counts=True)
        parts = [
            (int(own_groups[i]), [g for g, under in patterns if under[i]], int(n))
            for i, n in zip(first.tolist(), counts.tolist(), strict=True)
        ]
        terms: list[tuple[Monomial, Fraction]] = [((), Fraction(lone))]
        for own, others, count in parts:
            names: list[str] = []
            divisor = 1
            if own >= 0:
                group = u.groups[own]
                names.append(group.name)
                divisor *= group.size
            for o in others:
                names.append(u.groups[o].name)
                divisor *= u.groups[o].size
            terms.append((tuple(names), Fraction(count, divisor)))
        return Polynomial.of(terms)


def op_costs(p: Propagated, sizes: AxisPolynomials, batch: int, branch_of: Mapping[str, str]) -> tuple[OpCost, ...]:
    """Multiply-accumulates of every operator, for one image. branch_of: node name -> its removable branch."""
    out = []
    for cost in p.walk.costs:
        total = Polynomial.constant(1)
        for axis in cost.axes:
            total = total * sizes(axis)
        if cost.node in branch_of:
            total = total * Polynomial.of([((branch_of[cost.node],), 1)])
        out.append(OpCost(cost.module, cost.op, total.scale(Fraction(1, batch)) if cost.depends else total))
    return tuple(out)


def parameter_count(
    p: Propagated, sizes: AxisPolynomials, shapes: Mapping[str, tuple[int, ...]], branches: Mapping[str, str]
) -> Polynomial:
    """Number of elements of the tensors in `shapes`. branches: module path -> the removable branch it belongs to."""
    parts = []
    for name, shape in shapes.items():
        lines = p.tensors.get(name)
        total = Polynomial.constant(1)
        for size, line in zip(shape, lines or (None,) * len(shape), strict=True):
            total = total * sizes(AxisSize(size, (line,) if line is not None else ()))
        owner = name.rpartition(".")[0]
        while owner and owner not in branches:
            owner = owner.rpartition(".")[0]
        if owner:
            total = total * Polynomial.of([((branches[owner],), 1)])
        parts.append(total)
    return Polynomial.total(parts)
