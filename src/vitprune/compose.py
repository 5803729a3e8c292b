"""Two plans, one after the other, as one plan of the dense model."""

from __future__ import annotations

from collections.abc import Mapping

from vitprune.plan import GraphLike, GroupLike, GroupPlan, Plan, PlanError, plain


def same_groups(small: GraphLike, dense: GraphLike) -> dict[str, str]:
    """For every group of the pruned model the name that it has in the dense one.

    Names mostly agree; with a single head left a group may be named after another module, and is then found by its kind
    and the tensors behind it. A group without a counterpart keeps its name.
    """

    def behind(group: GroupLike) -> tuple[str, frozenset[tuple[str, int]]]:
        return group.kind, frozenset((m.tensor, m.dim) for m in group.members)

    names = {g.name for g in dense.groups}
    by_tensors = {behind(g): g.name for g in dense.groups}
    return {g.name: g.name if g.name in names else by_tensors.get(behind(g), g.name) for g in small.groups}


def compose(first: Plan, second: Plan, dense: GraphLike, names: Mapping[str, str] | None = None) -> Plan:
    """The plan of the `dense` model that equals pruning by `first` and then, its result, by `second`.

    names: what the groups of `second` are called in the dense model, see `same_groups`; all others keep their name.

    Groups that `second` does not know (their block is gone, or one unit was left) stay as `first` has them. Everything
    but groups, source and fingerprint is taken from `second`; what `first` was asked is kept under
    `settings["before"]`.

    Raises PlanError when `second` was not made for the result of `first`.
    """
    after = {(names or {}).get(name, name): group for name, group in second.groups.items()}
    extra = [name for name in after if name not in first.groups]
    if extra:
        raise PlanError(f"plan has groups that the model pruned before lacks: {', '.join(map(repr, extra[:4]))}")
    groups: dict[str, GroupPlan] = {}
    for group in dense.groups:
        was = first.groups[group.name]
        now = after.get(group.name)
        if now is None:
            groups[group.name] = was
            continue
        lanes = range(was.lanes) if group.lane_group is None else first.groups[group.lane_group].kept[0]
        if (now.size, now.lanes) != (was.kept_size, len(lanes)):
            raise PlanError(
                f"plan: group {group.name!r} has {now.lanes} lanes of {now.size} units, but the model pruned "
                f"before has {len(lanes)} of {was.kept_size}"
            )
        kept = [units[: now.kept_size] for units in was.kept]  # lanes that are gone already: any units, as many
        for position, lane in enumerate(lanes):
            kept[lane] = tuple(was.kept[lane][unit] for unit in now.kept[position])
        groups[group.name] = GroupPlan(was.kind, was.size, was.lanes, tuple(kept))
    before = [*first.settings.get("before", []), {"asked": plain(first.asked), "method": first.method}]
    return Plan(
        groups,
        first.fingerprint,
        second.asked,
        second.obtained,
        second.method,
        {**second.settings, "before": before},
        first.source,
        second.versions,
    )
