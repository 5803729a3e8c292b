import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toys import toy_graph
from vitprune.compose import compose, same_groups
from vitprune.errors import StoreError
from vitprune.plan import GroupPlan, Plan, PlanError, identity


def half() -> Plan:
    graph = toy_graph()
    groups = {g.name: GroupPlan(g.kind, g.size, g.lanes, (tuple(range(0, g.size, 2)),) * g.lanes) for g in graph.groups}
    return Plan(
        groups,
        graph.fingerprint,
        {"macs": 0.5},
        {"macs": {"value": 1, "dense": 2, "ratio": 0.5}},
        "magnitude-l2",
        {"kinds": ("mlp", "heads"), "notes": ["größer"], "minimum": {"mlp": 8}},
        {"kind": "timm", "name": "vit_tiny", "options": {}},
        {"vitprune": "0.1.0"},
    )


def edited(**changes):
    data = json.loads(half().to_json())
    data.update(changes)
    return json.dumps(data)


def edited_group(**changes):
    data = json.loads(half().to_json())
    data["groups"]["blocks.0.attn:v"].update(changes)
    return json.dumps(data)


def test_json_round_trip_is_exact():
    plan = half()
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.settings["kinds"] == ["mlp", "heads"]  # what JSON can hold


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20),
        st.integers(1, 30).flatmap(
            lambda size: st.tuples(st.just(size), st.lists(st.sets(st.integers(0, size - 1), min_size=1), min_size=1))
        ),
        max_size=5,
    )
)
def test_json_round_trip_of_any_plan(groups):
    made = {}
    for name, (size, lanes) in groups.items():
        least = min(len(lane) for lane in lanes)
        kept = tuple(tuple(sorted(lane)[:least]) for lane in lanes)
        made[name] = GroupPlan("mlp", size, len(lanes), kept)
    assert Plan.from_json(Plan(made).to_json()) == Plan(made)


def test_plan_error_is_a_store_error():
    with pytest.raises(StoreError, match="not valid JSON") as caught:
        Plan.from_json("{")
    assert caught.value.exit_code == StoreError.exit_code


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("[]", "must be a JSON object, but got list"),
        ("[" * 200_000, "nested too deeply|not valid JSON"),
        ('{"version": 1, "version": 1}', "'version' occurs twice"),
        ('{"version": NaN}', "NaN is no JSON number"),
        ('{"version": ' + "1" * 5000 + "}", "not valid JSON|version must be 1"),
        ('{"version": 2}', "version must be 1, but got 2"),
        ('{"version": true}', "version must be 1, but got True"),
        ('{"version": 1}', "lacks asked, fingerprint, groups"),
        (edited(extra=1), r"has unknown \['extra'\]"),
        (edited(groups=[]), "groups must be an object"),
        (edited(method=3), "method must be a string"),
        (edited(settings=[]), "settings must be an object"),
        (edited(versions={"torch": 2}), r"versions\['torch'\] must be a string"),
        (edited(groups={"": {}}), "1 to 1000 characters"),
        (edited(groups={"a": 1}), "group 'a' must be an object, but got 1"),
        (edited_group(kind="conv"), "group 'blocks.0.attn:v': kind must be one of residual, .* but got 'conv'"),
        (edited_group(kind=["v"]), "kind must be one of"),
        (edited_group(size=0), r"size must be an integer in 1\.\.\d+, but got 0"),
        (edited_group(size=True), "size must be an integer"),
        (edited_group(size=10**12), "size must be an integer"),
        (edited_group(lanes=65536, size=4194304), "more than 16777216 units"),
        (edited_group(kept=3), "kept must be a list of lists"),
        (edited_group(kept=[3]), r"kept\[0\] must be a list"),
        (edited_group(kept=[[0]]), "a list for each of 4 lanes, but has 1"),
        (edited_group(kept=[[0], [1], [2], [1, 2]]), "lane 3 keeps 2 units, but lane 0 keeps 1"),
        (edited_group(kept=[[0, 0], [1, 2], [2, 3], [1, 2]]), "of lane 0 must be ascending and unique"),
        (edited_group(kept=[[1, 0], [1, 2], [2, 3], [1, 2]]), "of lane 0 must be ascending and unique"),
        (edited_group(kept=[[0, 16], [1, 2], [2, 3], [1, 2]]), r"lane 0 must be in 0\.\.15, but hold 0\.\.16"),
        (edited_group(kept=[[-1], [1], [2], [3]]), r"must be in 0\.\.15, but hold -1"),
        (edited_group(kept=[[0.0], [1], [2], [3]]), r"kept\[0\] must hold integers, but holds 0.0"),
        (edited_group(kept=[[False], [1], [2], [3]]), r"kept\[0\] must hold integers, but holds False"),
        (edited_group(kept=[[], [], [], []]), "at least one unit must stay"),
    ],
)
def test_hostile_json_is_refused(text, message):
    with pytest.raises(PlanError, match=message):
        Plan.from_json(text)


def test_a_block_may_go_entirely():
    plan = Plan({"blocks.0:block": GroupPlan("block", 1, 1, ((),))})
    assert Plan.from_json(plan.to_json()).sizes() == {"blocks.0:block": 0}


def test_settings_must_be_json_values():
    with pytest.raises(PlanError, match="settings must hold JSON values"):
        Plan({}, settings={"x": object()}).to_json()
    with pytest.raises(PlanError, match="obtained must hold JSON values"):
        Plan({}, obtained={"x": float("inf")}).to_json()


def test_check_accepts_its_own_graph():
    half().check(toy_graph())
    assert identity(toy_graph()).pruned() == ()
    assert set(half().pruned()) == set(toy_graph().sizes())


def test_check_names_what_differs():
    graph, plan = toy_graph(), half()
    fewer = dataclasses.replace(graph, groups=graph.groups[1:], _by_name={})
    with pytest.raises(PlanError, match="has groups that the model lacks: 'residual'"):
        plan.check(fewer)
    rest = {n: g for n, g in plan.groups.items() if n != "residual"}
    with pytest.raises(PlanError, match="lacks groups of the model: 'residual'"):
        dataclasses.replace(plan, groups=rest).check(graph)
    wide = dict(plan.groups, residual=GroupPlan("residual", 64, 1, ((0,),)))
    with pytest.raises(PlanError, match=r"'residual' is .*64, 1\), but the model's is .*32, 1\)"):
        dataclasses.replace(plan, groups=wide).check(graph)
    with pytest.raises(PlanError, match="fingerprint 0000 does not match"):
        dataclasses.replace(plan, fingerprint="0000").check(graph)
    bad = dict(plan.groups, residual=GroupPlan("residual", 32, 1, ((1, 0),)))
    with pytest.raises(PlanError, match="'residual': kept units of lane 0 must be ascending"):
        dataclasses.replace(plan, groups=bad).check(graph)


def test_composition_follows_lanes_and_units():
    graph = toy_graph()
    keep = {g.name: tuple(tuple(range(g.size)) for _ in range(g.lanes)) for g in graph.groups}

    def plan(**kept):
        groups = {}
        for g in graph.groups:
            units = kept.get(g.name.replace(".", "_").replace(":", "_"), keep[g.name])
            groups[g.name] = GroupPlan(g.kind, g.size, g.lanes, units)
        return groups

    first = Plan(
        plan(blocks_0_attn_heads=((1, 3),), blocks_0_attn_v=((0, 1, 2), (1, 3, 5), (2, 3, 4), (9, 10, 15))),
        asked={"macs": 0.8},
        source={"kind": "timm"},
    )
    then = plan()
    then["blocks.0.attn:heads"] = GroupPlan("heads", 2, 1, ((1,),))
    then["blocks.0.attn:v"] = GroupPlan("v", 3, 2, ((0, 2), (1, 2)))
    then["blocks.0.attn:qk"] = GroupPlan("qk", 16, 2, (keep["blocks.0.attn:qk"][:2]))
    del then["blocks.1.fc1:mlp"]
    both = compose(first, Plan(then, asked={"macs": 0.5}), graph)
    both.check(graph)
    assert both.groups["blocks.0.attn:heads"].kept == ((3,),)
    assert both.groups["blocks.0.attn:v"].kept == ((0, 1), (1, 5), (2, 3), (10, 15))
    assert both.groups["blocks.1.fc1:mlp"] == first.groups["blocks.1.fc1:mlp"]
    assert (both.asked, both.source) == ({"macs": 0.5}, {"kind": "timm"})
    assert both.settings["before"] == [{"asked": {"macs": 0.8}, "method": ""}]
    assert compose(first, Plan({}), graph).groups == first.groups
    with pytest.raises(PlanError, match=r"'blocks.0.attn:v' has 4 lanes of 16 units, .* has 2 of 3"):
        compose(first, Plan({**then, "blocks.0.attn:v": GroupPlan("v", 16, 4, keep["blocks.0.attn:v"])}), graph)
    named = Plan({"other.name:mlp": GroupPlan("mlp", 64, 1, ((0, 5),))})
    renamed = compose(first, named, graph, {"other.name:mlp": "blocks.0.fc1:mlp"})
    assert renamed.groups["blocks.0.fc1:mlp"].kept == ((0, 5),)
    with pytest.raises(PlanError, match="lacks: 'other'"):
        compose(first, Plan({"other": GroupPlan("mlp", 2, 1, ((0,),))}), graph)


def test_groups_are_found_again_by_the_tensors_behind_them():
    graph = toy_graph()
    groups = [dataclasses.replace(g, name="x:qk") if g.name == "blocks.1.attn:qk" else g for g in graph.groups]
    groups = [dataclasses.replace(g, name="y:v", members=()) if g.name == "blocks.0.attn:v" else g for g in groups]
    small = dataclasses.replace(graph, groups=tuple(groups), _by_name={})
    found = same_groups(small, graph)
    assert found["x:qk"] == "blocks.1.attn:qk"
    assert found["y:v"] == "y:v"
    assert found["residual"] == "residual"
