"""What each of two processes does in the tests of masks in several; run as a script, results go to a folder."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import parallel

from latency_parts import CountingClock
from masks_parts import SETTINGS, TINY, pictures
from matrix import Traced, traced
from vitprune.allocate import Target
from vitprune.errors import TargetError
from vitprune.latency import table
from vitprune.masks import Gates, MaskError, MaskResult, MaskSettings, Pressure, Search, train_masks, vtp
from vitprune.processes import rank
from vitprune.recover import TrainError
from zoo import CASES as MODELS

SHORT = replace(SETTINGS, epochs=3, batch_size=4)
TARGET = Pressure(target=Target("macs", 0.6))
PLAIN = MaskSettings(TARGET, SHORT, finetune=replace(SHORT, epochs=1), kinds=("mlp", "qk", "v", "heads"), mask_lr=0.05)
WEIGHED = replace(PLAIN, pressure=Pressure(weight=2.0), kinds=("residual", "mlp"), sharing="independent", mask_lr=0.1)
CASES: dict[str, MaskSettings] = {
    "target": replace(PLAIN, warmup=replace(SHORT, epochs=1)),
    "residual": replace(WEIGHED, search=replace(SHORT, epochs=4, accumulate=2)),
    "hard-concrete": replace(PLAIN, relaxation="hard-concrete", kinds=("residual", "mlp")),
    "top-k": replace(PLAIN, relaxation="top-k"),
    "latency": replace(PLAIN, pressure=Pressure(target=Target("latency", 0.7)), kinds=("mlp", "qk", "v")),
    "vtp": replace(vtp(SHORT, rate=0.4, mask_lr=0.05, closings=2), finetune=None),
}
OUT_OF_REACH = replace(PLAIN, pressure=Pressure(target=Target("latency", 0.001)))
Seen = dict[str, Tensor]
table.POINTS = {0: 1, 1: 5, 2: 3, 3: 2}  # small tables


@cache
def ready() -> Traced:
    """The toy ViT and its trace; the model is copied before it is trained."""
    return traced(MODELS[TINY])


@contextmanager
def replaced(name: str, value: Any) -> Iterator[None]:
    """Another method of `Search` for a while."""
    before = getattr(Search, name)
    try:
        setattr(Search, name, value)
        yield
    finally:
        setattr(Search, name, before)


def run(
    settings: MaskSettings, factor: int = 1, folder: Path | None = None, images: int = 32
) -> tuple[MaskResult, Seen]:
    """The result of a case, and the masks after the search; `factor` multiplies the batch of a process."""
    seen, begin = dict[str, Gates](), Search.__init__

    def kept(self: Search, gates: Gates, *rest: Any, **more: Any) -> None:
        seen["gates"] = gates
        draw = torch.rand(gates.alpha.shape, generator=torch.Generator().manual_seed(0))
        gates.alpha.data *= 1 - 0.3 * draw  # else units tie, and rounding alone decides between them
        gates.refresh()
        begin(self, gates, *rest, **more)

    train, val, clock = pictures(images, batch_size=4 * factor), pictures(16, shuffle=False), CountingClock()
    with replaced("__init__", kept):
        result = train_masks(
            copy.deepcopy(ready().model), ready().graph, train, val, settings,
            example=MODELS[TINY].example(2), checkpoint_dir=folder, clock=clock,
        )  # fmt: skip
    assert (clock.compared > 0) == (settings.pressure.measured == "latency" and rank() == 0)  # one measures for all
    return result, {"alpha": seen["gates"].alpha.detach().clone(), "hard": seen["gates"].hard.clone()}


def facts(result: MaskResult) -> dict[str, Any]:
    """What a run told, without times."""
    phases = {name: history.to_json()["epochs"] for name, history in result.histories.items()}
    numbers = {n: [[e["loss"], e["val_top1"], e["cost"] or 0.0] for e in epochs] for n, epochs in phases.items()}
    return {"plan": json.loads(result.plan.to_json()), "epochs": numbers}


def write(out: Path, name: str, result: MaskResult, seen: Seen) -> None:
    """Leaves it in the folder, one file set per process."""
    weights = {k: v.contiguous() for k, v in result.model.state_dict().items()}
    save_file({**weights, **seen}, out / f"{name}-{rank()}.safetensors")
    (out / f"{name}-{rank()}.json").write_text(json.dumps(facts(result)))


def stopped(settings: MaskSettings, folder: Path, at: int) -> None:
    """A run that ends after a step of the search as by a kill: nothing is saved."""
    after = Search.after_step

    def stop(self: Search, step: int) -> None:
        if step == at:
            raise KeyboardInterrupt
        after(self, step)

    with replaced("after_step", stop), suppress(KeyboardInterrupt):
        run(settings, folder=folder)
        raise AssertionError("it was to stop")


def part(self: Search, step: int) -> None:
    """Masks of process 1 that are others at the end, by a fault of its own."""
    AFTER(self, step)
    if step + 1 == self.steps and rank() == 1:
        self.gates.alpha.data[: len(self.gates.alpha) // 2] = 0.0
        self.gates.refresh()


def poison(self: Search, step: int) -> None:
    """A loss that is not finite from step 6 on, in process 1."""
    AFTER(self, step)
    if step == 5 and rank() == 1:
        self.strength = self.strength * float("nan")


AFTER = Search.after_step


def refusals(out: Path) -> list[str]:
    """The errors of runs that all processes must refuse or end together."""
    found: list[str] = []
    other = replace(WEIGHED, mask_lr=0.2, search=replace(SHORT, lr=1e-4))
    for settings, hooked, more in (
        (replace(PLAIN, finetune=None), part, {}),
        (WEIGHED, poison, {"folder": out / "poisoned"}),
        (other, AFTER, {"folder": out / "poisoned"}),
        (PLAIN, AFTER, {"images": 1}),
        (OUT_OF_REACH, AFTER, {}),
    ):
        try:
            with replaced("after_step", hooked):
                run(settings, **more)  # type: ignore[arg-type]
        except (MaskError, TargetError, TrainError) as error:
            found.append(str(error))
    return found


def main(out: Path) -> None:
    """All cases, a run that was stopped and goes on, gradients that are views of DDP's buckets, what is refused."""
    for name, settings in CASES.items():
        write(out, name, *run(settings))
    stopped(CASES["hard-concrete"], out / "stopped", at=4 + 2)
    write(out, "resumed", *run(CASES["hard-concrete"], folder=out / "stopped"))
    plain = parallel.DistributedDataParallel
    parallel.DistributedDataParallel = partial(plain, gradient_as_bucket_view=True)  # type: ignore[assignment,misc]
    write(out, "views", *run(CASES["target"]))
    parallel.DistributedDataParallel = plain  # type: ignore[misc]
    (out / f"errors-{rank()}.txt").write_text("\n".join(refusals(out)))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
