"""Targets as text: shares and absolute numbers."""

import pytest

from toys import random_scores, toy_graph
from vitprune.allocate import Target, allocate
from vitprune.errors import TargetError


@pytest.mark.parametrize(
    ("text", "metric", "value", "absolute"),
    [
        ("macs=0.5", "macs", 0.5, False),
        (" Params = 0.4 ", "params", 0.4, False),
        ("macs=1", "macs", 1.0, False),
        ("macs=4.6G", "macs", 4.6e9, True),
        ("params=12M", "params", 12e6, True),
        ("params=500k", "params", 5e5, True),
        ("macs=5e-1", "macs", 0.5, False),
        ("macs=0.5x", "macs", 0.5, False),
        ("latency=0.5x", "latency", 0.5, False),
        ("latency=0.75", "latency", 0.75, False),
        ("latency=12ms", "latency", 12.0, True),
        ("Latency = 0.012 s", "latency", 12.0, True),
    ],
)
def test_target_parses(text, metric, value, absolute):
    target = Target.parse(text)
    assert (target.metric, target.value, target.absolute) == (metric, pytest.approx(value), absolute)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not understood; write METRIC=RATIO"),
        ("0.5", "is not understood"),
        ("macs=half", "is not understood"),
        ("macs=0.5X", "is not understood"),
        ("macs=1e", "is not understood"),
        ("flops=0.5", "metric must be one of macs, params, latency, units, but got 'flops'"),
        ("macs=0", "must be above 0, but got macs=0"),
        ("macs=-0.5", "must be above 0, but got macs=-0.5"),
        ("macs=-5G", "must be above 0"),
        ("macs=50", r"must be in \(0, 1\].*but got macs=50.*needs a suffix"),
        ("macs=12ms", "macs is not given in 'ms'"),
        ("params=0.5s", "params is not given in 's'"),
        ("latency=12M", "latency is not given in 'M'"),
        ("latency=12us", "is not understood"),
        ("latency=12", r"must be in \(0, 1\].*needs a suffix ms or s"),
        ("latency=0ms", "must be above 0"),
        ("macs=1e999", "must be above 0|must be in"),
    ],
)
def test_malformed_targets_are_refused(text, message):
    with pytest.raises(TargetError, match=message):
        Target.parse(text)


def test_absolute_target_equals_its_ratio():
    graph = toy_graph()
    scores = random_scores(graph)
    dense = graph.cost()[0]
    by_ratio = allocate(graph, scores, "macs=0.5")
    absolute = allocate(graph, scores, Target("macs", dense / 2, absolute=True))
    assert by_ratio.groups == absolute.groups
    with pytest.raises(TargetError, match=r"macs=1G is above the dense model's macs"):
        allocate(graph, scores, "macs=1G")


def test_latency_alone_is_no_target_of_allocate():
    graph = toy_graph()
    with pytest.raises(TargetError, match=r"latency=0.5x needs times measured on the model.*vitprune.prune"):
        allocate(graph, random_scores(graph), "latency=0.5")
