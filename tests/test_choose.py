"""What is taken where the user leaves the choice open."""

import pytest

from vitprune.pipeline.choose import chosen_method, chosen_scope
from vitprune.score import METHODS
from vitprune.score.types import ScoreError


def test_scores_in_one_unit_are_ranked_per_cost():
    assert chosen_method("auto", True) == "output-error" and chosen_method("auto", False) == "magnitude-l2"
    for name, method in METHODS.items():
        assert chosen_scope("auto", name) == ("per-cost" if method.info.comparable else "local")
    assert [n for n, m in METHODS.items() if m.info.comparable] == ["output-error"]
    assert chosen_scope("global", "output-error") == "global"
    with pytest.raises(ScoreError, match="method must be one of"):
        chosen_scope("auto", "output-eror")
