"""Groups out of classes: classes that occur at the same places are the units of one group."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from vitprune.errors import listed
from vitprune.trace.graph import Frozen, Group, Kind, Member
from vitprune.trace.labels import Array, Solved
from vitprune.trace.names import block_key, common_module, rank_blocks
from vitprune.trace.propagate import Propagated
from vitprune.trace.value import Field, Value

KIND_BY_TAG: tuple[Kind, ...] = ("qk", "v", "heads", "residual")


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """Which group, lane and unit every class is; -1 where it is none."""

    groups: tuple[Group, ...]
    group: Array  # per class
    lane: Array
    unit: Array
    signature: Array  # per class: equal for classes that occur at the same places


def _signatures(p: Propagated, solved: Solved) -> Array:
    """Per class a number that is equal, but for accidents of 64 bits, iff the classes occur on the same axes."""
    rng = np.random.default_rng(0)
    total = np.zeros(p.walk.labels.count, dtype=np.uint64)

    def see(array: Array) -> None:
        flat = array.ravel()
        if flat.min(initial=0) < 0:
            flat = flat[flat >= 0]
        np.add.at(total, flat, rng.integers(1, 2**63, dtype=np.uint64))

    for lines in p.tensors.values():
        for line in lines:
            if line is not None:
                see(line)
    for f in _all_fields(p):
        see(f.array)
    out = np.zeros(int(solved.cls.max(initial=-1)) + 1, dtype=np.uint64)
    np.add.at(out, solved.cls, total)
    return cast(Array, out)


def _all_fields(p: Propagated) -> list[Field]:
    found: list[Field] = []
    for value in p.values.values():
        for v in value if isinstance(value, tuple) else (value,):
            if isinstance(v, Value):
                found += v.fields
    return found


def _lane_keys(p: Propagated, solved: Solved, classes: int) -> tuple[Array, list[tuple[int, ...]]]:
    """Per class the number of the one set of covering classes that all its labels have; -1 for none or several."""
    start, covering = solved.covers.start, solved.covers.classes
    weight = np.random.default_rng(1).integers(1, 2**63, classes, dtype=np.uint64)
    running = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(weight[covering], dtype=np.uint64)])
    covered = np.flatnonzero(np.diff(start))
    _, first, which = np.unique(  # equal, but for accidents of 64 bits, iff the sets are
        running[start[covered + 1]] - running[start[covered]], return_index=True, return_inverse=True
    )
    sets = [tuple(covering[start[k] : start[k + 1]].tolist()) for k in covered[first].tolist()]
    of_own = np.full(len(start) - 1, -1, dtype=np.int64)
    of_own[covered] = which
    per_label = of_own[solved.own]
    low = np.full(classes, np.iinfo(np.int64).max)
    high = np.full(classes, -1)
    np.minimum.at(low, solved.cls, per_label)
    np.maximum.at(high, solved.cls, per_label)
    return np.where(low == high, high, -1), sets


def build_groups(p: Propagated, solved: Solved) -> Units:
    """All groups of the trace, without the `block` kind."""
    classes = int(solved.cls.max(initial=-1)) + 1
    signature = _signatures(p, solved)
    lane_key, key_sets = _lane_keys(p, solved, classes)
    first = np.full(classes, np.iinfo(np.int64).max)
    np.minimum.at(first, solved.cls, np.arange(p.walk.labels.count))
    alive = np.zeros(classes, dtype=bool)
    for lines in p.tensors.values():
        for line in lines:
            if line is not None:
                alive[solved.cls[line]] = True
                alive[solved.covers.of(solved.own[line])[1]] = True
    made = np.zeros(p.walk.labels.count, dtype=bool)
    for name, lines in p.tensors.items():
        if name in p.parameters:
            for line in lines:
                if line is not None:
                    made[line] = True
    for array in p.walk.labels.summed:
        made[array] = False
    maker = np.zeros(classes, dtype=bool)
    maker[solved.cls[made]] = True
    maker[solved.covers.of(np.unique(solved.own[made]))[1]] = True
    for c in np.flatnonzero(alive & ~maker).tolist():
        solved.frozen.setdefault(c, "made by no parameter (constants)")
    for c in solved.frozen:
        alive[c] = False
    order = np.flatnonzero(alive)
    order = order[np.argsort(first[order], kind="stable")]
    buckets: dict[int, list[int]] = {}
    for c in order.tolist():
        buckets.setdefault(int(signature[c]), []).append(c)

    group = np.full(classes, -1)
    lane = np.zeros(classes, dtype=np.int64)
    unit = np.full(classes, -1)
    drafts: list[tuple[Kind, list[int], int, int, tuple[int, ...]]] = []
    for members in buckets.values():
        array = np.asarray(members)
        keys = lane_key[array]
        lanes = 1
        covers: tuple[int, ...] = ()
        distinct = list(dict.fromkeys(keys.tolist()))
        counts = [int((keys == k).sum()) for k in distinct]
        if -1 not in distinct and len(distinct) > 1 and len(set(counts)) == 1:
            lanes = len(distinct)
            covers = tuple(c for k in distinct for c in key_sets[k])
        size = len(members) // lanes
        if size < 2:
            for c in members:
                solved.frozen.setdefault(c, "a single unit")
            continue
        tags = frozenset().union(*(solved.tags.get(c, frozenset()) for c in members))
        kind: Kind = next((t for t in KIND_BY_TAG if t in tags), "mlp")
        number = len(drafts)
        group[array] = number
        if lanes > 1:
            position = {k: i for i, k in enumerate(distinct)}
            lane[array] = [position[k] for k in keys.tolist()]
            for k in distinct:
                chosen = array[keys == k]
                unit[chosen] = np.arange(len(chosen))
        else:
            unit[array] = np.arange(len(array))
        drafts.append((kind, members, lanes, size, covers))

    found = _members(p, solved, drafts, group, lane, unit)
    for i, (kind, members, lanes, size, _) in enumerate(drafts):
        if lanes > 1 and not all(_lane_major(m) for m in found[i]):
            lane[members] = 0  # an axis with the heads inside: the same dims of every head, or their order breaks
            drafts[i] = (kind, members, 1, size, ())
    names: dict[str, int] = {}
    paths = [common_module([m.tensor for m in found[i]]) for i in range(len(drafts))]
    owner = {c: i for i, (_, members, *_) in enumerate(drafts) for c in members}
    for i, (_, _, lanes, _, covering) in enumerate(drafts):
        over = {owner[c] for c in covering if c in owner}
        if lanes > 1 and len(over) == 1:
            paths[i] = paths[over.pop()]
    blocks = rank_blocks(
        [block_key(path) for (kind, *_), path in zip(drafts, paths, strict=True) if kind != "residual"]
    )
    result: list[Group] = []
    titles: list[str] = []
    for i, (kind, *_) in enumerate(drafts):
        title = f"{paths[i]}:{kind}" if paths[i] else kind
        names[title] = names.get(title, 0) + 1
        titles.append(title if names[title] == 1 else f"{title}#{names[title]}")
    for i, (kind, members, lanes, size, covering) in enumerate(drafts):
        reasons = tuple(sorted({r for c in members for r in solved.inexact.get(c, ())}))
        over = {int(group[c]) for c in covering if group[c] >= 0}
        lane_group = None
        if lanes > 1 and len(over) == 1:
            candidate = next(iter(over))
            if len(drafts[candidate][1]) == lanes:
                lane_group = titles[candidate]
                _sort_lanes(candidate, members, group, lane, unit, lane_key, key_sets)
        result.append(
            Group(
                titles[i],
                kind,
                size,
                lanes,
                lane_group,
                (),
                paths[i],
                None if kind == "residual" else blocks.get(block_key(paths[i]) or ""),
                not reasons,
                reasons,
            )
        )
    found = _members(p, solved, drafts, group, lane, unit)
    done = tuple(replace(g, members=tuple(found[i])) for i, g in enumerate(result))
    return Units(done, group, lane, unit, signature)


def _lane_major(member: Member) -> bool:
    """Whether the positions of each lane stand together, lane after lane."""
    if len(member.index) < 2:
        return True
    low, high = member.index.min(axis=1), member.index.max(axis=1)  # (lanes, k)
    return bool((high[:-1] < low[1:]).all())


def _sort_lanes(
    over: int,
    members: list[int],
    group: Array,
    lane: Array,
    unit: Array,
    lane_key: Array,
    key_sets: list[tuple[int, ...]],
) -> None:
    """Number the lanes as the units of the covering group are numbered."""
    for c in members:
        for cover in key_sets[lane_key[c]]:
            if group[cover] == over:
                lane[c] = unit[cover]


def _members(
    p: Propagated,
    solved: Solved,
    drafts: list[tuple[Kind, list[int], int, int, tuple[int, ...]]],
    group: Array,
    lane: Array,
    unit: Array,
) -> list[list[Member]]:
    """Per group the slices that go with its units."""
    out: list[list[Member]] = [[] for _ in drafts]
    for name, lines in p.tensors.items():
        for dim, line in enumerate(lines):
            if line is None:
                continue
            cls = solved.cls[line]
            at, covering = solved.covers.of(solved.own[line])
            positions = np.concatenate([np.arange(len(line)), at])
            owners = np.concatenate([cls, covering])
            numbers = group[owners]
            for g in np.unique(numbers[numbers >= 0]).tolist():
                chosen = numbers == g
                where, who = positions[chosen], owners[chosen]
                _, _, lanes, size, _ = drafts[g]
                order = np.lexsort((where, unit[who], lane[who]))
                where, who = where[order], who[order]
                count = len(where)
                assert count % (lanes * size) == 0, f"{name}[{dim}]: {count} positions for {lanes} x {size} units"
                index = where.reshape(lanes, size, count // (lanes * size))
                out[g].append(Member(name, dim, index))
    return out


def build_frozen(p: Propagated, solved: Solved, units: Units) -> tuple[Frozen, ...]:
    """Axes of parameters that must keep their size, with the reason, equal ones together."""
    found: dict[tuple[str, int], tuple[list[str], int]] = {}
    for name, lines in p.tensors.items():
        for dim, line in enumerate(lines):
            if line is None:
                continue
            cls = solved.cls[line]
            for signature in np.unique(units.signature[cls]).tolist():
                at = cls[units.signature[cls] == signature]
                reasons = [solved.frozen[c] for c in np.unique(at).tolist() if c in solved.frozen]
                if reasons:
                    where, _ = found.setdefault((reasons[0], signature), ([], len(at)))
                    where.append(f"{name}[{dim}]")
    return tuple(Frozen(listed(where), size, reason) for (reason, _), (where, size) in found.items())


def build_cosize(p: Propagated, solved: Solved, units: Units) -> tuple[tuple[str, ...], ...]:
    """Groups that the source keeps equal: those that share one rectangular axis, and q/k and v dims of one layer."""
    sets: set[frozenset[int]] = set()
    seen: set[bytes] = set()
    for f in _all_fields(p):
        if len(f.varying()) < 2:
            continue
        key = f.array.tobytes()
        if key in seen:
            continue
        seen.add(key)
        labels = f.array[f.array >= 0]
        numbers = np.unique(units.group[solved.cls[labels]])
        sets.add(frozenset(int(n) for n in numbers if n >= 0))
    by_heads: dict[str, set[int]] = {}
    for i, g in enumerate(units.groups):
        if g.kind in ("qk", "v") and g.lane_group is not None:
            by_heads.setdefault(g.lane_group, set()).add(i)
    sets |= {frozenset(s) for s in by_heads.values()}
    result: list[set[int]] = []
    for s in sets:
        merged = set(s)
        if len({units.groups[i].size for i in merged}) != 1:
            continue
        rest = []
        for r in result:
            if r & merged:
                merged |= r
            else:
                rest.append(r)
        result = [*rest, merged]
    named = [tuple(units.groups[i].name for i in sorted(r)) for r in result if len(r) > 1]
    return tuple(sorted(named))
