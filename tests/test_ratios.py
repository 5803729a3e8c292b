"""Shares given per kind and per layer, on hand-made graphs."""

import dataclasses
import json

import numpy as np
import pytest

from toys import HIDDEN, random_scores, toy_graph
from vitprune.allocate import DEFAULT_KINDS, Target, allocate
from vitprune.allocate.depth import gone_with
from vitprune.allocate.ratios import read_layer_ratios
from vitprune.cli.options import ratios as parse_ratios
from vitprune.errors import TargetError
from vitprune.plan import Plan
from vitprune.trace.graph import Graph, Group
from vitprune.trace.polynomial import Polynomial


def branched(count=4, width=32):
    """`count` branches, of which each holds an MLP; a unit of it costs one MAC and one parameter."""
    groups: list[Group] = []
    macs: dict[tuple[str, ...], int] = {(): 1}
    for i in range(count):
        groups.append(Group(f"{i}:mlp", "mlp", width, 1, None, (), "", i))
        groups.append(Group(f"{i}:block", "block", 1, 1, None, (), "", i))
        macs[(f"{i}:block", f"{i}:mlp")] = 1
    poly = Polynomial.of(macs)
    return Graph(tuple(groups), (), (), poly, poly, (), (), 1)


# kinds that the model lacks


def without(graph, *kinds):
    gone = {g.name for g in graph.groups if g.kind in kinds}
    return dataclasses.replace(
        graph,
        groups=tuple(g for g in graph.groups if g.name not in gone),
        macs=Polynomial.of([t for t in graph.macs.terms if not gone & set(t[0])]),
        params=Polynomial.of([t for t in graph.params.terms if not gone & set(t[0])]),
        cosize=(),
        _by_name={},
    )


@pytest.mark.parametrize(
    "settings",
    [{"kinds": ["mlp", "qk"]}, {"ratios": {"qk": 0.5}}, {"kinds": ["mlp"], "ratios": {"qk": 0.5}}, {"kinds": ["qk"]}],
)
def test_a_kind_that_the_model_lacks_is_refused_when_named(settings):
    graph = without(toy_graph(), "qk", "v", "heads")
    with pytest.raises(TargetError, match="the model has no group of kind qk; its kinds are residual, mlp$"):
        allocate(graph, random_scores(graph), "macs=0.9", **settings)
    plan = allocate(graph, random_scores(graph), "macs=0.9")
    assert plan.settings["kinds"] == list(DEFAULT_KINDS) and {plan.groups[n].kind for n in plan.pruned()} == {"mlp"}


def test_a_ratio_brings_its_kind_among_the_kinds_to_prune():
    graph = toy_graph()
    plan = allocate(graph, random_scores(graph), None, ratios={"heads": 0.5, "mlp": 0.75})
    sizes = plan.sizes()
    assert [sizes[f"blocks.{b}.attn:heads"] for b in range(2)] == [2, 2]
    assert [sizes[f"blocks.{b}.fc1:mlp"] for b in range(2)] == [48, 48]
    assert {plan.groups[n].kind for n in plan.pruned()} == {"heads", "mlp"}
    with pytest.raises(TargetError, match="ratios name kind 'mpl', but kinds are residual"):
        allocate(graph, random_scores(graph), None, ratios={"mpl": 0.5})


def test_a_ratio_without_effect_is_refused():
    graph = toy_graph()
    with pytest.raises(TargetError, match=r"ratio of mlp is 0.5, but none may shrink: blocks.0.fc1:mlp: protected by"):
        allocate(graph, random_scores(graph), None, ratios={"mlp": 0.5}, protect=["*mlp"])


def test_ratios_are_read_from_the_command_line():
    assert parse_ratios(["mlp=0.6, heads=0.3", "qk=1"]) == {"mlp": 0.6, "heads": 0.3, "qk": 1.0}
    with pytest.raises(TargetError, match="--ratio must be KIND=SHARE, such as mlp=0.6,heads=0.5, but got 'heads'"):
        parse_ratios(["mlp=0.6,heads"])
    with pytest.raises(TargetError, match="must name a kind once, but gives mlp 0.6 and 0.5"):
        parse_ratios(["mlp=0.6", "mlp=0.5"])


# per layer


def test_layer_ratios_decide_and_the_first_match_counts():
    graph = toy_graph()
    ratios = {"blocks.1.fc1:mlp": 0.25, "*mlp": 0.75, "blocks.0.*:v": 0.5}
    plan = allocate(graph, random_scores(graph), None, layer_ratios=ratios)
    sizes = plan.sizes()
    assert (sizes["blocks.1.fc1:mlp"], sizes["blocks.0.fc1:mlp"]) == (HIDDEN // 4, 3 * HIDDEN // 4)
    assert sizes["blocks.0.attn:v"] == sizes["blocks.0.attn:qk"] == 8  # they keep equal sizes
    assert set(plan.pruned()) == {"blocks.0.fc1:mlp", "blocks.1.fc1:mlp", "blocks.0.attn:v", "blocks.0.attn:qk"}
    assert plan.settings["layer_ratios"] == [list(pair) for pair in ratios.items()]
    assert Plan.from_json(plan.to_json()) == plan


def test_a_target_is_made_up_for_by_the_other_groups():
    graph = toy_graph()
    plan = allocate(graph, random_scores(graph), "macs=0.6", layer_ratios={"blocks.0.fc1:mlp": 1, "blocks.1.fc1*": 0.5})
    assert plan.sizes()["blocks.0.fc1:mlp"] == HIDDEN and plan.sizes()["blocks.1.fc1:mlp"] == HIDDEN // 2
    assert plan.obtained["macs"]["ratio"] <= 0.6 and "blocks.0.attn:qk" in plan.pruned()
    with pytest.raises(TargetError, match="cannot be reached"):
        allocate(graph, random_scores(graph), "macs=0.2", layer_ratios={"*mlp": 1})


@pytest.mark.parametrize(("share", "size"), [(0.44, 32), (0.43, 24), (0.3125, 24), (0.3, 16), (0.05, 8), (0.99, 64)])
def test_the_nearest_permitted_size_is_taken_of_two_the_larger(share, size):
    graph = toy_graph()  # 64 hidden units in steps of 8: 0.3125 is 20, between 16 and 24
    plan = allocate(graph, random_scores(graph), None, layer_ratios={"blocks.0.fc1:mlp": share})
    assert plan.sizes()["blocks.0.fc1:mlp"] == size


def test_a_layers_ratio_goes_before_its_kinds():
    graph = toy_graph()
    plan = allocate(graph, random_scores(graph), None, ratios={"mlp": 0.5}, layer_ratios={"blocks.0.fc1:mlp": 1})
    assert plan.sizes()["blocks.0.fc1:mlp"] == HIDDEN and plan.sizes()["blocks.1.fc1:mlp"] == HIDDEN // 2


@pytest.mark.parametrize(
    ("ratios", "message"),
    [
        ({"nothing*": 0.5}, r"ratio pattern 'nothing\*' matches no group; `vitprune inspect` lists"),
        ({"*mlp": 0.5, "blocks.0.fc1:mlp": 0.7}, "'blocks.0.fc1:mlp' comes too late: earlier patterns take all"),
        ({"*mlp": 0}, r"must have a share in \(0, 1\].* but has 0"),
        ({"*mlp": 1.2}, r"must have a share in \(0, 1\].* but has 1.2"),
        ({"*mlp": float("nan")}, r"must have a share in \(0, 1\].* but has nan"),
        ({"*heads": 0.5}, r"'\*heads' matches nothing that may shrink: blocks.0.attn:heads: kind heads is not among"),
        ({"*.0.attn:qk": 0.5, "*.0.attn:v": 1}, "blocks.0.attn:qk, blocks.0.attn:v keep equal sizes"),
    ],
)
def test_layer_ratios_that_make_no_sense_are_refused(ratios, message):
    graph = toy_graph()
    with pytest.raises(TargetError, match=message):
        allocate(graph, random_scores(graph), "macs=0.9", layer_ratios=ratios)


def test_files_of_ratios(tmp_path):
    wanted = {"blocks.0.mlp:mlp": 0.5, "blocks.[1-3].*:qk": 0.75, "*": 1.0}
    (tmp_path / "a.json").write_text(json.dumps(wanted))
    (tmp_path / "a.toml").write_text('"blocks.0.mlp:mlp" = 0.5\n"blocks.[1-3].*:qk" = 0.75\n"*" = 1\n')
    for name in ("a.json", "a.toml"):
        found = read_layer_ratios(tmp_path / name)
        assert list(found.items()) == list(wanted.items())


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"a": 0.5', "a.json is malformed: Expecting"),
        ("a.json", b"\xff\xfe", "a.json is malformed: .*utf-8"),
        ("a.json", "[" * 100000, "a.json is malformed"),
        ("a.json", '{"a": 0.5, "b": 1, "a": 0.7}', "malformed: 'a' stands there twice"),
        ("a.json", "[0.5]", "must be a table of group name patterns and shares"),
        ("a.json", "{}", "and not empty"),
        ("a.json", '{"a": "half"}', "the share of 'a' must be a number, but is 'half'$"),
        ("a.json", '{"a": true}', "must be a number, but is 'True'"),
        ("a.toml", "a = ", "a.toml is malformed: Invalid value"),
        (
            "a.toml",
            "blocks.0.mlp = 0.5",
            "the share of 'blocks' must be a number.*; in TOML, names with dots or colons",
        ),
        ("a.toml", "a = 2020-01-01", "the share of 'a' must be a number"),
        ("missing.json", None, "missing.json cannot be read: No such file"),
    ],
)
def test_malformed_files_of_ratios_are_refused(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(TargetError, match=message):
        read_layer_ratios(tmp_path / name)
    with pytest.raises(TargetError, match="cannot be read: Is a directory"):
        read_layer_ratios(tmp_path)


# whole branches


def test_what_lies_in_removed_branches():
    graph = branched()
    assert gone_with(graph, ["1:block", "3:block"]) == {"1:mlp", "3:mlp"}
    assert gone_with(graph, []) == frozenset()
    shared = dataclasses.replace(graph, params=Polynomial.of([*graph.params.terms, (("1:mlp",), 1)]), _by_name={})
    assert gone_with(shared, ["1:block"]) == frozenset()  # it costs parameters elsewhere


@pytest.mark.parametrize("scope", ["local", "isomorphic", "global"])
def test_a_ratio_of_blocks_removes_the_least_and_the_widths_make_up(scope):
    graph = branched(count=4, width=64)
    scores = random_scores(graph) | {f"{i}:block": np.array([[float(v)]]) for i, v in enumerate((5, 1, 7, 3))}
    scores["1:mlp"] += 100  # in vain: its branch goes
    plan = allocate(graph, scores, "macs=0.5", scope=scope, ratios={"block": 0.75}, round_to=1)
    sizes = plan.sizes()
    assert [sizes[f"{i}:block"] for i in range(4)] == [1, 0, 1, 1]
    assert sizes["1:mlp"] == 64  # nothing is taken from what is gone
    assert sum(sizes[f"{i}:mlp"] for i in (0, 2, 3)) == 127  # half of 4 * 64 + 1


def test_ratios_of_units_do_not_count_what_goes_with_its_branch():
    graph = branched(count=4, width=64)
    by_name = {"0:block": 0, "1:mlp": 0.25}
    plan = allocate(
        graph, random_scores(graph), None, layer_ratios=by_name, ratios={"mlp": 0.5}, kinds=["mlp", "block"]
    )
    assert list(plan.sizes().values()) == [64, 0, 16, 1, 32, 1, 32, 1]


@pytest.mark.parametrize("scope", ["local", "isomorphic", "global"])
def test_blocks_and_widths_under_one_budget(scope):
    graph = branched(count=6, width=64)
    values = []
    for share in np.linspace(0.1, 1, 20):
        target = Target("macs", float(share))
        plan = allocate(graph, random_scores(graph), target, scope=scope, kinds=["mlp", "block"], round_to=1)
        inside = {n.replace("block", "mlp") for n in plan.pruned() if n.endswith("block")}
        assert all(plan.sizes()[n] == 64 for n in inside)
        values.append(plan.obtained["macs"]["value"])
        assert values[-1] <= share * plan.obtained["macs"]["dense"] + 1e-9
    assert values == sorted(values)
