"""What masks add to a training step: plain fine-tuning and training under gates, step by step in turns.

    python benchmarks/masks_overhead.py --device cuda --models vit_tiny_patch16_224 vit_small_patch16_224

Prints one JSON line per model, batch size and set of kinds: median milliseconds of a step, and the median ratio of the
two steps of a turn with its 95 % interval. The step is that of `vitprune.recover.fit`: forward, loss, backward,
clipping, AdamW.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Sequence

import numpy as np
import timm
import torch
from torch import nn

from vitprune.allocate import Target
from vitprune.masks import Pressure, Search, on_model
from vitprune.recover import TrainSettings
from vitprune.recover.optimizer import add_groups_, make_optimizer
from vitprune.recover.runtime import Runtime
from vitprune.trace import trace

KINDS = {"without residual": ("mlp", "qk", "v", "heads"), "all": None}


class Side:
    """One model in training, with gates or without; `amp`: "no" or "bf16"."""

    def __init__(self, model: nn.Module, hook: Search | None, device: str, amp: str) -> None:
        self.model, self.hook, self.runtime = model.train(), hook, Runtime(device, amp)
        self.optimizer = make_optimizer(model, TrainSettings())
        if hook is not None:
            add_groups_(self.optimizer, hook.extra_parameters())
        self.step = 0

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> float:
        """Milliseconds of one step."""
        if x.is_cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        if self.hook is not None:
            self.hook.before_forward(self.step)
        with self.runtime.autocast():
            loss = nn.functional.cross_entropy(self.model(x).float(), y)
            if self.hook is not None:
                loss = loss + self.hook.extra_loss(self.step)
        self.runtime.backward(loss)
        if self.hook is not None:
            self.hook.after_backward(self.step)
        self.runtime.clip(list(self.model.parameters()), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.hook is not None:
            self.hook.after_step(self.step)
        self.step += 1
        if x.is_cuda:
            torch.cuda.synchronize()
        return 1e3 * (time.perf_counter() - began)


def in_turns(
    sides: Sequence[Side], x: torch.Tensor, y: torch.Tensor, turns: int, warm: int, rng: np.random.Generator
) -> np.ndarray:
    """(turns, 2): milliseconds of a step of either side, in an order drawn anew each turn, after `warm` turns."""
    times = np.zeros((turns, 2))
    for turn in range(-warm, turns):
        for side in rng.permutation(2):
            took = sides[side](x, y)
            if turn >= 0:
                times[turn, side] = took
    return times


def measure(name: str, batch: int, kinds: str, device: str, turns: int, amp: bool, warm: int) -> dict[str, object]:
    """The row of one model, batch size and set of kinds."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False)
    x, y = torch.randn(batch, 3, 224, 224, device=device), torch.randint(0, 1000, (batch,), device=device)
    masked = copy.deepcopy(model).to(device)
    graph = trace(masked, (x[:2],))
    hook = Search(on_model(masked, graph, KINDS[kinds]), Pressure(target=Target("macs", 0.5)), turns)
    how = device, "bf16" if amp else "no"
    sides = Side(model.to(device), None, *how), Side(masked, hook, *how)
    rng = np.random.default_rng(0)
    times = in_turns(sides, x, y, turns, warm, rng)
    ratios = times[:, 1] / times[:, 0]
    draws = np.median(ratios[rng.integers(0, turns, (2000, turns))], axis=1)
    plain, gated = np.median(times, axis=0)
    return {
        "model": name, "batch": batch, "kinds": kinds, "device": device, "amp": amp, "threads": torch.get_num_threads(),
        "plain_ms": round(float(plain), 3), "masked_ms": round(float(gated), 3),
        "ratio": round(float(np.median(ratios)), 4),
        "interval": [round(float(q), 4) for q in np.quantile(draws, [0.025, 0.975])],
    }  # fmt: skip


def main() -> None:
    """Measures all combinations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["vit_tiny_patch16_224"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 64])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--amp", action="store_true")
    given = parser.parse_args()
    for name in given.models:
        for batch in given.batches:
            for kinds in given.kinds:
                row = measure(name, batch, kinds, given.device, given.turns, given.amp, given.warm)
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
