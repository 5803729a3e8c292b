"""Masked training that is stopped and goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from masks_parts import SETTINGS, run_masks, search_settings
from vitprune.masks import MaskError, Pressure, Search
from vitprune.recover import Upkeep


@pytest.mark.parametrize(("every", "first"), [(0, 18), (1, 19)])
def test_stopped_searches_go_on_bit_by_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, first: int
) -> None:
    straight = run_masks(search_settings())
    calls, after = [], Search.after_step

    def stop(self: Search, step: int) -> None:
        calls.append(step)
        if len(calls) == 6 * 3 + 2:
            raise KeyboardInterrupt
        after(self, step)

    monkeypatch.setattr(Search, "after_step", stop)
    with pytest.raises(KeyboardInterrupt):
        run_masks(search_settings(), tmp_path, upkeep=Upkeep(checkpoint_every=every))
    resumed = run_masks(search_settings(), tmp_path, upkeep=Upkeep(checkpoint_every=every))
    assert calls[20:] == list(range(first, 30))
    assert resumed.plan == straight.plan
    mine, theirs = resumed.model.state_dict(), straight.model.state_dict()
    assert all(torch.equal(mine[k], theirs[k]) for k in theirs)
    changed = search_settings(mask_lr=0.1, search=replace(SETTINGS, epochs=6), pressure=Pressure(weight=1.0))
    with pytest.raises(MaskError, match=r"\(mask_lr, pressure.target, pressure.weight, search.epochs\); give another"):
        run_masks(changed, tmp_path)
    (tmp_path / "masks.json").write_text("{")
    with pytest.raises(MaskError, match=r"masks.json cannot be read: .*; delete .* to start over"):
        run_masks(changed, tmp_path)


@pytest.mark.parametrize(
    "more",
    [
        {"relaxation": "hard-concrete"},
        {"pressure": Pressure(weight=1.0), "sharing": "independent"},
        {"search": replace(SETTINGS, epochs=5, amp="bf16")},
    ],
)
def test_other_searches_that_are_stopped_go_on_bit_by_bit(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the sizes are settled, too, and in the warm-up and fine-tuning."""
    settings = search_settings(**more)
    straight, taken = run_masks(settings), []
    take = torch.optim.AdamW.step

    def stop(self: torch.optim.AdamW, *given: Any, **named: Any) -> Any:
        taken.append(None)
        if len(taken) in (5, 42, 50):  # in the warm-up, the end of the search, and fine-tuning
            raise KeyboardInterrupt
        return take(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                run_masks(settings, tmp_path, upkeep=Upkeep(checkpoint_every=1))
        resumed = run_masks(settings, tmp_path, upkeep=Upkeep(checkpoint_every=1))
    assert resumed.plan == straight.plan
    theirs = straight.model.state_dict()
    assert all(torch.equal(tensor, theirs[k]) for k, tensor in resumed.model.state_dict().items())
