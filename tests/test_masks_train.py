"""Masks from beginning to end: phases, targets, VTP, resumed runs, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from masks_parts import ALL, SETTINGS, TINY, pictures
from matrix import traced
from vitprune.allocate import Target
from vitprune.masks import Gates, MaskError, MaskResult, MaskSettings, Pressure, Search, train_masks, vtp
from vitprune.shrink import shrink
from zoo import CASES


def search_settings(**more: object) -> MaskSettings:
    """A quick run."""
    given = {"pressure": Pressure(target=Target("macs", 0.6)), "mask_lr": 0.05, "kinds": ALL}
    base = {"search": replace(SETTINGS, epochs=5), "warmup": SETTINGS, "finetune": SETTINGS}
    return MaskSettings(**{**given, **base, **more})  # type: ignore[arg-type]


def run(settings: MaskSettings, folder: Path | None = None) -> MaskResult:
    """The result of the phases on the toy pictures."""
    case = CASES[TINY]
    ready = traced(case)
    return train_masks(
        ready.model, ready.graph, pictures(), pictures(16, shuffle=False), settings,
        example=case.example(2), checkpoint_dir=folder,
    )  # fmt: skip


@pytest.mark.parametrize("relaxation", ["straight-through", "hard-concrete", "top-k"])
def test_a_target_is_met(relaxation: str) -> None:
    result = run(search_settings(relaxation=relaxation))
    assert 0.59 < result.plan.obtained["macs"]["ratio"] <= 0.6
    assert set(result.histories) == {"warm-up", "search", "fine-tuning"}
    case = CASES[TINY]
    again = shrink(traced(case).model, traced(case).graph, result.plan, example=case.example(2))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in result.model.state_dict().items()
    }


def test_stopped_searches_go_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = run(search_settings())
    calls, after = [], Search.after_step

    def stop(self: Search, step: int) -> None:
        calls.append(step)
        if len(calls) == 6 * 3 + 2:
            raise KeyboardInterrupt
        after(self, step)

    monkeypatch.setattr(Search, "after_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run(search_settings(), tmp_path)
    resumed = run(search_settings(), tmp_path)
    assert calls[-12:] == list(range(18, 30))
    assert resumed.plan == straight.plan
    mine, theirs = resumed.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    with pytest.raises(MaskError, match="another folder"):
        run(search_settings(mask_lr=0.1), tmp_path)


def test_a_cost_that_closes_everything_stops_the_run() -> None:
    with pytest.raises(MaskError, match=r"of the masks are at their smallest size at step .* cost weight of 1000"):
        run(search_settings(pressure=Pressure(weight=1000.0), mask_lr=0.2))


def test_settings_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    ready = traced(CASES[TINY])
    with monkeypatch.context() as patch, pytest.raises(MaskError, match="train them in one process"):
        patch.setenv("WORLD_SIZE", "2")
        run(search_settings(relaxation="hard-concrete"))
    with pytest.raises(MaskError, match="sharing must be one of residual"):
        MaskSettings(Pressure(weight=1.0), sharing="all")  # type: ignore[arg-type]
    with pytest.raises(MaskError, match="a weight of the cost, a target or a rate"):
        Pressure()
    with pytest.raises(MaskError, match="cost of masks must be one of macs, params, latency, but got 'flops'"):
        Pressure("flops", weight=1.0)
    with pytest.raises(MaskError, match="a rate needs a positive l1"):
        Pressure(rate=0.5)
    with pytest.raises(MaskError, match="l1 penalty and the relaxation scale .* go together"):
        MaskSettings(Pressure(weight=1.0), relaxation="scale")
    with pytest.raises(MaskError, match="top-k needs a target"):
        MaskSettings(Pressure(weight=1.0), relaxation="top-k")
    with pytest.raises(MaskError, match=r"kinds asked \(block; frozen: block\)"):
        Gates(ready.model, ready.graph, ("block",), freeze=("block",))
    ready.model.requires_grad_(False)
    with pytest.raises(MaskError, match=r"need the gradients .* has none"):
        Gates(ready.model, ready.graph)


@pytest.mark.parametrize("sharing", ["residual", "inputs"])
def test_vtp_closes_the_smallest_gates_and_folds_the_others(sharing: str) -> None:
    """All gates ranked together; what is left is exact."""
    case = CASES[TINY]
    ready = traced(case)
    settings = vtp(replace(SETTINGS, lr=1e-3), rate=0.4, sharing=sharing, finetune=None, mask_lr=0.05)  # type: ignore[arg-type]
    seen: dict[str, Gates] = {}

    class Kept(Search):
        def __init__(self, gates: Gates, *rest: object) -> None:
            seen["gates"] = gates
            super().__init__(gates, *rest)  # type: ignore[arg-type]

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
