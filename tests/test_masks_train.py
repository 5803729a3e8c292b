"""Masks from beginning to end: phases, targets, progress, errors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from masks_parts import SETTINGS, TINY, pictures, run_masks, search_settings
from matrix import traced
from vitprune.masks import Gates, MaskError, MaskSettings, Pressure, Search, train_masks, vtp
from vitprune.masks.alive import guesses
from vitprune.masks.cost import SETTLED
from vitprune.masks.train import steps_per_epoch
from vitprune.plan import Plan
from vitprune.progress import Silent
from vitprune.recover import TrainError
from vitprune.shrink import shrink
from zoo import CASES


@pytest.mark.parametrize("relaxation", ["straight-through", "hard-concrete", "top-k"])
def test_a_target_is_met(relaxation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the masks themselves: what is trained at the end of the search is the model that comes out."""
    plans: list[Plan] = []

    class Watched(Search):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            plans.append(self.gates.plan())

    monkeypatch.setattr("vitprune.masks.train.Search", Watched)
    result = run_masks(search_settings(relaxation=relaxation))
    assert 0.594 < result.plan.obtained["macs"]["ratio"] <= 0.6
    settled = plans[int(SETTLED * len(plans)) - 1 :]
    assert len(plans) == 30 and len(settled) == 4
    assert all({n: g.kept_size for n, g in p.groups.items()} == result.plan.sizes() for p in settled)
    assert plans[-1].groups == result.plan.groups
    assert result.histories["search"].epochs[-1].cost == pytest.approx(plans[-1].obtained["macs"]["ratio"], abs=1e-4)
    assert plans[-5].sizes() != result.plan.sizes(), "the search before them was free"
    assert set(result.histories) == {"warm-up", "search", "fine-tuning"}
    case = CASES[TINY]
    again = shrink(traced(case).model, traced(case).graph, result.plan, example=case.example(2))
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in result.model.state_dict().items()
    }


@pytest.mark.parametrize(
    ("more", "closed"),
    [
        ({}, "% of the masks are closed"),
        ({"sharing": "blocks"}, "% of the masks are closed"),
        ({"sharing": "independent"}, "% of the masks are closed"),
        ({"sharing": "inputs"}, "% of the masks are closed"),
        ({"kinds": ("residual",)}, r"residual is down to \d of 32 channels"),
        ({"kinds": ("residual",), "sharing": "independent"}, "100 % of the masks are closed"),
        ({"relaxation": "hard-concrete", "kinds": ("mlp", "qk", "v", "heads")}, "% of the masks are closed"),
        ({"relaxation": "hard-concrete", "kinds": ("residual",)}, r"residual is down to \d of 32 channels"),
    ],
)
def test_a_cost_that_closes_everything_stops_the_run(more: dict[str, object], closed: str) -> None:
    given = {"warmup": None, "mask_lr": 0.2, "search": replace(SETTINGS, epochs=10)} | more
    with pytest.raises(MaskError, match=closed + r" at step \d+, with a cost weight of 1000: .* dead; lower it, give"):
        run_masks(search_settings(pressure=Pressure(weight=1000.0), **given))


def test_smallest_sizes_that_were_given_are_no_collapse() -> None:
    weight = Pressure(weight=1000.0)
    result = run_masks(search_settings(pressure=weight, mask_lr=0.2, kinds=("mlp",), minimum={"mlp": 44}, warmup=None))
    assert {g.kept_size for g in result.plan.groups.values() if g.kind == "mlp"} == {44}


def test_a_model_that_only_guesses_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its masks say: here all units stay, and the scores follow no image."""
    settings = search_settings(pressure=Pressure(weight=1e-6), warmup=replace(SETTINGS, epochs=6, lr=3e-3))
    after = Search.after_step

    def forget(self: Search, step: int) -> None:
        dict(self.gates.model.named_parameters())["head.weight"].data.zero_()
        after(self, step)

    monkeypatch.setattr(Search, "after_step", forget)
    with pytest.raises(MaskError, match=r"top-1 fell from \d+\.\d to \d+\.\d %, which is guessing, at step 29, "):
        run_masks(settings, val=64)
    assert guesses(0.179, 10, 128) and not guesses(0.18, 10, 128)
    assert not guesses(0.01, 1000, 50_000)


def test_a_loss_that_is_not_finite_is_named_and_leaves_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = search_settings(pressure=Pressure(weight=1.0), warmup=None)
    straight = run_masks(settings)
    after = Search.after_step

    def poison(self: Search, step: int) -> None:
        if step == 14:
            self.gates.alpha.data[0] = float("nan")
        after(self, step)

    with monkeypatch.context() as patch, pytest.raises(TrainError, match="the loss became nan at step 15; lower"):
        patch.setattr(Search, "after_step", poison)
        patch.setattr("vitprune.masks.search.LOOK_EVERY", 1)  # masks that are not numbers are not closed
        run_masks(settings, tmp_path)
    assert [p.name for p in (tmp_path / "search").iterdir()] == ["epoch-00001"]
    resumed = run_masks(settings, tmp_path)
    theirs = straight.model.state_dict()
    assert all(torch.equal(tensor, theirs[k]) for k, tensor in resumed.model.state_dict().items())

    def last(self: Search, step: int) -> None:
        after(self, step)
        if step == 5:
            self.gates.alpha.data[0] = float("nan")

    with monkeypatch.context() as patch, pytest.raises(TrainError, match="hook's alpha is not finite after step 5"):
        patch.setattr(Search, "after_step", last)
        run_masks(settings, tmp_path / "other")


def test_sharded_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainError, match="launched with FSDP, but here every process holds the whole model"):
        run_masks(search_settings())


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(TrainError, match="the teacher scores 7 classes and the student 10"):
        run_masks(search_settings(), teacher=nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 7)))


@pytest.mark.parametrize("relaxation", ["straight-through", "top-k"])
def test_a_search_ends_when_nothing_moves_any_more(relaxation: str, tmp_path: Path) -> None:
    """Never before a target's budget has fallen, and the target is reached."""
    still = replace(SETTINGS, epochs=10, lr=1e-12, patience=2)
    settings = search_settings(relaxation=relaxation, search=still, mask_lr=1e-12, warmup=None, finetune=None)
    epochs = run_masks(settings).histories["search"].epochs
    if relaxation == "straight-through":  # masks that do not move reach it where the sizes are settled, at the end
        assert [e.settled for e in epochs] == [False] * 8 + [True] * 2
        assert epochs[7].cost == 1 and 0.59 < epochs[8].cost == epochs[9].cost <= 0.6
        return
    assert [e.settled for e in epochs] == [False] * 6 + [True] * 2  # the budget falls for 42 of 60 steps
    assert epochs[6].cost == epochs[7].cost <= 0.61 < epochs[4].cost
    after, seen = Search.after_step, []

    def stop(self: Search, step: int) -> None:
        seen.append(step)
        if step == 44 and seen.count(44) == 1:
            raise KeyboardInterrupt
        after(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "after_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_masks(settings, tmp_path)
        again = run_masks(settings, tmp_path).histories["search"].epochs
        assert seen[-6:] == list(range(42, 48)) and len(run_masks(settings, tmp_path).histories["search"].epochs) == 8
    assert [replace(e, seconds=0) for e in again] == [replace(e, seconds=0) for e in epochs]


def test_in_half_precision_the_shrunk_model_is_the_masked_one_too() -> None:
    case = CASES[TINY]
    ready = traced(case)
    settings = search_settings(search=replace(SETTINGS, epochs=5, amp="bf16"), warmup=None, finetune=None)
    seen: list[torch.Tensor] = []
    (x,) = case.example(8)

    class Watched(Search):
        def after_step(self, step: int) -> None:
            super().after_step(step)
            if step + 1 == self.steps:
                with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                    seen.append(self.gates.model.eval()(x).float())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitprune.masks.train.Search", Watched)
        small = train_masks(
            ready.model, ready.graph, pictures(), pictures(16, shuffle=False), settings, example=case.example(2)
        ).model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got = small(x).float()
    assert float((got - seen[-1]).abs().max()) < 0.02 * float(got.abs().max())


def test_a_model_wrapped_by_compile_is_trained_as_itself() -> None:
    case, settings = CASES[TINY], search_settings()
    found = []
    for wraps in (False, True):
        ready = traced(case)
        model = torch.compile(ready.model, backend="eager") if wraps else ready.model
        found.append(
            train_masks(model, ready.graph, pictures(), pictures(16, shuffle=False), settings, example=case.example(2))
        )
    plain, compiled = found
    assert plain.plan == compiled.plan
    theirs = compiled.model.state_dict()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5)


def test_frozen_kinds_stay_whole_and_heads_and_branches_can_go() -> None:
    graph = traced(CASES[TINY]).graph
    frozen = run_masks(search_settings(freeze=("heads", "residual"), warmup=None, finetune=None)).plan
    assert all(g.kept_size == g.size for g in frozen.groups.values() if g.kind in ("heads", "residual", "block"))
    assert any(g.kept_size < g.size for g in frozen.groups.values() if g.kind == "mlp")
    search = replace(SETTINGS, epochs=3)
    gates = run_masks(replace(vtp(search, rate=0.5, mask_lr=0.05, finetune=None), kinds=("heads", "block"))).plan
    kinds = {name: graph[name].kind for name in gates.pruned()}
    assert kinds and set(kinds.values()) <= {"heads", "block"}
    assert all(g.kept_size == g.size for g in gates.groups.values() if g.kind not in ("heads", "block"))


def test_a_teacher_changes_what_a_search_learns() -> None:
    for settings in (search_settings(warmup=None, finetune=None), vtp(SETTINGS, rate=0.3, finetune=None)):
        weights = []
        for weight, features in ((0.0, 0.0), (0.9, 0.0), (0.9, 1.0)):
            taught = replace(settings.search, distill_weight=weight, feature_weight=features)
            teacher = traced(CASES[TINY]).model
            with torch.no_grad():
                teacher.head.bias += torch.arange(10.0)
            result = run_masks(replace(settings, search=taught), teacher=teacher if weight else None)
            weights.append(result.model.head.bias.detach().clone())
        assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


def test_a_search_without_a_target_waits_for_the_cost() -> None:
    still = replace(SETTINGS, epochs=14, lr=1e-12, patience=2)
    plain = search_settings(pressure=Pressure(weight=2.0), search=still, kinds=("mlp",), warmup=None, finetune=None)
    epochs = run_masks(replace(plain, mask_lr=0.03)).histories["search"].epochs
    costs = [e.cost for e in epochs]
    assert costs[:2] == [1.0] * 2 and not any(e.settled for e in epochs[:2])  # nothing was closed yet
    assert 5 < len(epochs) < 14 and min(costs[-2:]) >= min(costs[:-2]) - 2e-3
    gates = run_masks(vtp(still, rate=0.2, mask_lr=1e-12, finetune=None)).histories["search"].epochs
    assert len(gates) == 3 and gates[0].cost == pytest.approx(1)
    steps = run_masks(vtp(still, rate=0.2, mask_lr=1e-12, finetune=None, closings=2)).histories["search"].epochs
    assert [e.settled for e in steps] == [False] * 6 + [True] * 2  # the first threshold falls after 7


def test_steps_are_those_of_the_optimizer() -> None:
    """So a budget falls over them where gradients are accumulated, too."""
    result = run_masks(
        search_settings(search=replace(SETTINGS, epochs=5, accumulate=3), kinds=("mlp",), relaxation="top-k")
    )
    assert [e.settled for e in result.histories["search"].epochs] == [False] * 3 + [True] * 2
    assert steps_per_epoch(pictures(), replace(SETTINGS, accumulate=4)) == 2


def test_settings_that_make_no_sense() -> None:
    ready = traced(CASES[TINY])
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(MaskError, match=f"the weight of the cost must be positive, but got {wrong}"):
            Pressure(weight=wrong)
        with pytest.raises(MaskError, match=f"mask_lr must be positive, but got {wrong}"):
            MaskSettings(Pressure(weight=1.0), mask_lr=wrong)
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


def test_progress_shows_the_cost_beside_the_loss() -> None:
    shown: list[dict[str, Any]] = []

    class Bar(Silent):
        def advance(self, n: int = 1, **facts: float | str) -> None:
            shown.append(facts)

    result = run_masks(search_settings(warmup=None, finetune=None), progress=Bar())
    costs = [facts["cost"] for facts in shown if "cost" in facts]
    assert len(costs) >= 5 and costs[0] == 1.0
    assert costs[-1] == pytest.approx(result.plan.obtained["macs"]["ratio"], abs=1e-4)
