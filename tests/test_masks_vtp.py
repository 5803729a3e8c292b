"""VTP: gates that shrink under an L1 penalty, closed by rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from masks_parts import SETTINGS, TINY, pictures, run_masks
from matrix import traced
from vitprune.allocate import Target
from vitprune.masks import Gates, Search, train_masks, vtp
from zoo import CASES


@pytest.mark.parametrize("asked", [{"rate": 0.4}, {"target": Target("macs", 0.6)}])
def test_vtp_closes_in_several_steps(asked: dict[str, Any]) -> None:
    """A third, two thirds and all of what is to be closed; a gate that was closed never opens again."""
    settings = vtp(replace(SETTINGS, epochs=3), finetune=None, mask_lr=0.05, closings=3, **asked)
    seen: list[tuple[float, float, torch.Tensor]] = []

    class Watched(Search):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            hard = self.gates.hard.clone()
            seen.append((float((hard < 0.5).double().mean()), float(self.cost().detach()), hard))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitprune.masks.train.Search", Watched)
        result = run_masks(settings)
    third = len(seen) // 3
    for at, (closed, cost, hard) in enumerate(seen):
        part = (at + 1) // third if at + 1 < len(seen) else 2  # the last threshold falls after the training
        if "rate" in asked:
            assert 0.4 * part / 3 - 0.08 < closed <= 0.4 * part / 3 + 1e-6
        else:
            assert cost <= 1 - 0.4 * part / 3 + 1e-9 and (not part or cost > 0.9 * (1 - 0.4 * part / 3))
        assert not at or bool((hard <= seen[at - 1][2]).all())
    if "target" in asked:
        assert 0.58 < result.plan.obtained["macs"]["ratio"] <= 0.6


@pytest.mark.parametrize("sharing", ["residual", "inputs"])
def test_vtp_closes_the_smallest_gates_and_folds_the_others(sharing: str) -> None:
    """All gates ranked together; what is left is exact."""
    case = CASES[TINY]
    ready = traced(case)
    settings = vtp(replace(SETTINGS, lr=1e-3), rate=0.4, sharing=sharing, finetune=None, mask_lr=0.05)  # type: ignore[arg-type]
    seen: dict[str, Gates] = {}

    class Kept(Search):
        def __init__(self, gates: Gates, *rest: Any, **more: Any) -> None:
            seen["gates"] = gates
            super().__init__(gates, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitprune.masks.train.Search", Kept)
        result = train_masks(
            ready.model, ready.graph, pictures(), pictures(16, shuffle=False), settings, example=case.example(2)
        )
    gates = seen["gates"]
    alpha = gates.alpha.detach()
    assert {v.kind for v in gates.vectors} == {"residual", "v", "mlp"} and float(alpha.std()) > 0.01
    open_ = gates.hard > 0.5
    closed = float(1 - open_.double().mean())
    assert 0.33 < closed <= 0.4  # lanes keep equal counts, rounded upwards
    border = alpha.abs().sort().values[int(0.4 * len(alpha))]
    single = [i for i, v in enumerate(gates.vectors) if v.lanes == 1]
    for i in single:
        units = slice(int(gates.layout.offset[i]), int(gates.layout.offset[i + 1]))
        assert torch.equal(open_[units], alpha[units].abs() >= border * (1 - 1e-6))
    assert bool(result.behind) == (sharing == "inputs")
    with torch.no_grad():  # the gates are closed by now: the model holds the folded weights
        kept = result.plan.groups["blocks.0.mlp:mlp"].kept[0]
        small = dict(result.model.named_parameters())["blocks.0.mlp.fc2.weight"]
        dense = dict(ready.model.named_parameters())["blocks.0.mlp.fc2.weight"][:, list(kept)]
        assert small.shape[1] == dense.shape[1] < 88
        if sharing == "residual":
            rows = list(result.plan.groups[next(n for n in result.plan.groups if n.endswith("residual"))].kept[0])
            assert torch.equal(small, dense[rows])
