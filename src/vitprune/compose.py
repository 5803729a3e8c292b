"""Two plans, one after the other, as one plan of the dense model."""

from __future__ import annotations

from vitprune.plan import GraphLike, GroupPlan, Plan, PlanError, plain


def compose(first: Plan, second: Plan, dense: GraphLike) -> Plan:
    """The plan of the `dense` model that equals pruning by `first` and then, its result, by `second`.

    Groups that `second` does not know (their block is gone, or one unit was left) stay as `first` has them. Everything
    but groups, source and fingerprint is taken from `second`; what `first` was asked is kept under
    `settings["before"]`.

    Raises PlanError when `second` was not made for the result of `first`.
    """
    extra = [name for name in second.groups if name not in first.groups]
    if extra:
        raise PlanError(f"plan has groups that the model pruned before lacks: {', '.join(map(repr, extra[:4]))}")
    groups: dict[str, GroupPlan] = {}
    for group in dense.groups:
        was = first.groups[group.name]
        now = second.groups.get(group.name)
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
