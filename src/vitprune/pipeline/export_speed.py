"""Latency of an exported file beside PyTorch, dense and pruned, in turns."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitprune import evaluate, models
from vitprune.evaluate.latency import using_threads
from vitprune.export import ExportError, Format, Job, Runner
from vitprune.export.capture import first_line
from vitprune.pipeline.export_settings import ExportSettings, Speed
from vitprune.pipeline.opening import Opened, dense_skeleton
from vitprune.progress import Progress

SECONDS = 8.0  # spent on each batch size at most, roughly
REPEATS = (5, 60)  # at least and at most
Timed = dict[tuple[str, str], nn.Module | Callable[[Tensor], Any]]  # (model, by) -> what takes images


def speeds(
    opened: Opened, chosen: Format, job: Job, runner: Runner, settings: ExportSettings, progress: Progress
) -> tuple[tuple[Speed, ...], tuple[str, ...]]:
    """Rows of all that can be timed, and notes on what cannot.

    Of a pruned model its dense twin is timed too: in PyTorch, and exported in the same way with weights of no matter.
    A file that takes one number of images is timed at that number alone.
    """
    notes: list[str] = []
    label = f"{chosen.info.name} {settings.precision}"
    threads = settings.threads or torch.get_num_threads()
    pruned = opened.plan is not None and opened.plan.pruned()
    named: Timed = {}
    with tempfile.TemporaryDirectory() as place:
        if pruned:
            assert opened.plan is not None
            twin = filled_(dense_skeleton(opened.plan, opened.loaded.preprocessing)[0])
            named |= _torch("dense", twin, settings.compile)
            work = Path(place)
            try:
                chosen.write(Job(twin, *_rest(job)), work)
                named["dense", label] = adapted(chosen.open(work, threads))
            except ExportError as error:
                notes.append(f"the dense twin was not exported, so that it is not timed: {error}")
        own = "pruned" if pruned else "model"
        named |= _torch(own, opened.model, settings.compile)
        named[own, label] = adapted(runner)
        batches = settings.latency_batches if job.batch is None else (job.batch,)
        if job.batch is not None and tuple(settings.latency_batches) != batches:
            notes.append(f"the file takes {job.batch} image(s) per call, so that it was timed at that number alone")
        image = models.example(opened.loaded.preprocessing, batch=1)
        rows = [row for n in batches for row in _at(named, image, n, threads, notes, progress)]
        named.clear()
    return tuple(rows), tuple(dict.fromkeys(notes))


def adapted(runner: Runner) -> Callable[[Tensor], Any]:
    """The runner as a callable of a tensor."""
    return lambda images: runner(images.numpy())


def filled_(model: nn.Module) -> nn.Module:
    """A skeleton with small random matrices where its weights are zeros, so that quantizers find ranges."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
    return model.eval()


def _torch(name: str, model: nn.Module, compiles: bool) -> Timed:
    found: Timed = {(name, "eager"): model}
    if compiles:
        found[name, "compile"] = torch.compile(model, dynamic=False)
    return found


def _rest(job: Job) -> tuple[Any, ...]:
    return job.preprocessing, job.classes, job.batch, job.quantize, job.calibration


def _at(named: Timed, image: Tensor, batch: int, threads: int, notes: list[str], progress: Progress) -> list[Speed]:
    """The rows of one batch size; what fails (torch.compile without a C++ compiler) is left out, with a note."""
    x = image.expand(batch, *image.shape[1:]).contiguous()
    for key, call in list(named.items()):
        if key[1] != "compile":
            continue
        try:
            with torch.no_grad(), using_threads(threads):
                call(x)
        except Exception as error:  # any of the compiler's
            notes.append(f"torch.compile of the {key[0]} model failed, so that it is not timed: {first_line(error)}")
            del named[key]
    calls = {"\t".join(key): call for key, call in named.items()}
    trial = evaluate.latency(calls, image, batch_sizes=(batch,), threads=threads, warmup=1, repeats=2)
    turn_s = max(sum(row.median_ms for row in trial) / 1000, 1e-4)
    repeats = max(REPEATS[0], min(REPEATS[1], int(SECONDS / turn_s)))
    rows = evaluate.latency(
        calls, image, batch_sizes=(batch,), threads=threads, warmup=2, repeats=repeats, progress=progress
    )
    found = []
    for row in rows:
        model, _, by = row.name.partition("\t")
        found.append(Speed(model, by, batch, row.median_ms, row.p10_ms, row.p90_ms, row.threads))
    return found
