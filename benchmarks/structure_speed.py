"""Time and memory of trace + score + plan + shrink of a ViT-B/16, against Torch-Pruning 1.6.1 doing the same.

Same process, the sides taking turns. Both remove heads, head dims and MLP units (and, in the second job, residual
channels too) by magnitude under one global ranking, the classifier's outputs left alone. Torch-Pruning is wired by
hand as its examples do: head counts given before and written back after. It cuts a model in place, vitprune makes a
new one; vitprune is asked for the number of parameters that Torch-Pruning's 50 % of the channels left.

Needs the peer: pip install torch-pruning==1.6.1
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import time
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from record import parser, setting, shown, spread, table, write
from torch import nn

warnings.filterwarnings("ignore", message="Unwrapped parameters detected")  # Torch-Pruning's guess is right here

JOBS: dict[str, tuple[str, ...]] = {
    "heads, head dims, MLP": ("heads", "qk", "v", "mlp"),
    "the same and the residual width": ("heads", "qk", "v", "mlp", "residual"),
}
SIDES = ("torch-pruning", "vitprune", "vitprune, no check")
MIB = 2**20
Stages = dict[str, float]


def build(name: str, seed: int) -> nn.Module:
    """The model with random weights, in eval mode."""
    import timm

    torch.manual_seed(seed)
    model: nn.Module = timm.create_model(name).eval()
    return model


def peer(model: Any, x: torch.Tensor, residual: bool) -> tuple[Stages, nn.Module]:
    """Stages in seconds, and `model` itself, cut to half of its channels by Torch-Pruning, global magnitude."""
    import torch_pruning as tp

    start = time.perf_counter()
    kept = [] if residual else [block.mlp.fc2 for block in model.blocks]
    pruner = tp.pruner.BasePruner(
        model,
        x[:1],
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.5,
        ignored_layers=[model.head, *kept],
        num_heads={block.attn.qkv: block.attn.num_heads for block in model.blocks},
        prune_num_heads=True,
        prune_head_dims=True,
        head_pruning_ratio=0.5,
    )
    traced = time.perf_counter()
    pruner.step()
    for block in model.blocks:
        attention = block.attn
        attention.num_heads = pruner.num_heads[attention.qkv]
        attention.attn_dim = attention.qkv.out_features // 3
        attention.head_dim = attention.attn_dim // attention.num_heads
    end = time.perf_counter()
    return {"trace": traced - start, "score, plan, cut": end - traced, "total": end - start}, model


def ours(
    model: nn.Module, x: torch.Tensor, kinds: tuple[str, ...], params: float, check: bool
) -> tuple[Stages, nn.Module]:
    """Stages in seconds, and a new model with at most the share `params` of the parameters."""
    from vitprune.allocate import allocate
    from vitprune.score import score
    from vitprune.shrink import difference, keep_from, shrink
    from vitprune.trace import trace

    times = [time.perf_counter()]
    graph = trace(model, (x,))
    times.append(time.perf_counter())
    scores = score(graph, model, "magnitude-l2")
    times.append(time.perf_counter())
    plan = allocate(graph, scores, f"params={params}", scope="global", kinds=kinds, round_to=1)
    times.append(time.perf_counter())
    small = shrink(model, graph, plan, example=(x,), check=False)
    times.append(time.perf_counter())
    if check:  # what shrink(check=True) does, timed apart
        gap = difference(model, small, keep_from(graph, plan), (x,), {})
        assert gap < 1e-4, gap
    times.append(time.perf_counter())
    stages = dict(
        zip(
            ("trace", "score", "plan", "cut", "check"),
            (b - a for a, b in pairwise(times)),
            strict=True,
        )
    )
    return {**stages, "total": times[-1] - times[0]}, small


def parameters(model: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in model.parameters())


def run(side: str, model: nn.Module, x: torch.Tensor, job: str, share: float) -> tuple[Stages, nn.Module]:
    """One side's job once."""
    if side == "torch-pruning":
        return peer(model, x, "residual" in JOBS[job])
    return ours(model, x, JOBS[job], share, side == "vitprune")


def peer_share(name: str, seed: int, x: torch.Tensor, job: str) -> float:
    """The share of the parameters that Torch-Pruning leaves."""
    model = build(name, seed)
    dense = parameters(model)
    return parameters(run("torch-pruning", model, x, job, 0)[1]) / dense


def status(field: str) -> int:
    """A field of this process' memory status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {field} in /proc/self/status")


def memory(side: str, name: str, seed: int, job: str, share: float) -> dict[str, float]:
    """Peak resident memory on top of the model, in MiB, for one side in this fresh process.

    A tiny model goes through the same job before, so that libraries are loaded and do not count.
    """
    x = torch.randn(2, 3, 224, 224)
    run(side, build("vit_tiny_patch16_224", seed), x, job, 0.6)
    model = build(name, seed)
    weights = sum(t.untyped_storage().nbytes() for t in [*model.parameters(), *model.buffers()])
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = status("VmRSS")
    _, small = run(side, model, x, job, share)
    return {
        "model_mib": weights / MIB,
        "peak_on_top_mib": (status("VmHWM") - before) / MIB,
        "left_on_top_mib": (status("VmRSS") - before) / MIB,
        "params": parameters(small),
    }


def main() -> None:
    """Measure both jobs and write the page."""
    options = parser(__doc__)
    options.add_argument("--model", default="vit_base_patch16_224")
    options.add_argument("--repeats", type=int, default=7)
    options.add_argument("--memory", nargs=3, metavar=("SIDE", "JOB", "SHARE"), help="one memory measurement, alone")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        side, job, share = args.memory
        print(json.dumps(memory(side, args.model, args.seed, job, float(share))))
        return
    rows: list[dict[str, Any]] = []
    sections: list[str] = []
    x = torch.randn(2, 3, 224, 224)
    for job in JOBS:
        share = peer_share(args.model, args.seed, x, job)
        times = measure(args, x, job, share, rows)
        peaks = [remember(args, side, job, share) for side in SIDES]
        rows += [{"job": job, "side": side, **peak} for side, peak in zip(SIDES, peaks, strict=True)]
        sections += report(job, share, times, peaks)
    sections.append(
        "Peak memory: each side in a fresh process, on Linux; the growth of the resident set from when the model is "
        "built to the high-water mark (`VmHWM`, reset through `/proc/self/clear_refs`), after the same job on a tiny "
        "model, so that loaded libraries do not count. vitprune's figures include the pruned model, as the dense one "
        "stays as it was; Torch-Pruning works in place."
    )
    about = setting(args.threads, args.seed)
    write(
        args.out,
        f"structure-speed-{args.threads}-threads",
        f"Trace, plan and shrink of {args.model}, {args.threads} threads",
        sections,
        rows,
        about,
    )


def measure(args: Any, x: torch.Tensor, job: str, share: float, rows: list[dict[str, Any]]) -> dict[str, list[Stages]]:
    """The stages of every repeat of every side, one unmeasured round before."""
    times: dict[str, list[Stages]] = {side: [] for side in SIDES}
    dense = build(args.model, args.seed)
    for repeat in range(-1, args.repeats):
        for side in SIDES:
            model = copy.deepcopy(dense) if side == "torch-pruning" else dense
            busy = time.process_time()
            stages, small = run(side, model, x, job, share)
            stages["processor"] = time.process_time() - busy
            with torch.no_grad():
                assert small(x).shape == dense(x).shape
            if repeat >= 0:
                times[side].append(stages)
                rows.append(
                    {"job": job, "side": side, "repeat": repeat, "params": parameters(small), "seconds": stages}
                )
    return times


def remember(args: Any, side: str, job: str, share: float) -> dict[str, float]:
    """One memory measurement in a fresh process."""
    command = [sys.executable, __file__, "--model", args.model, "--seed", str(args.seed)]
    command += ["--threads", str(args.threads), "--memory", side, job, str(share)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def report(job: str, share: float, times: dict[str, list[Stages]], peaks: list[dict[str, float]]) -> list[str]:
    """The page's section for one job."""
    base = spread([s["total"] for s in times["torch-pruning"]])[0]
    rows = []
    for side, peak in zip(SIDES, peaks, strict=True):
        seconds = [s["total"] for s in times[side]]
        ratios = [s["total"] / p["total"] for s, p in zip(times[side], times["torch-pruning"], strict=True)]
        on_top = peak["peak_on_top_mib"]
        rows.append(
            (side, shown(seconds), f"{spread(seconds)[0] / base:.2f}", shown(ratios),
             shown([s["processor"] for s in times[side]]), f"{peak['params'] / 1e6:.1f} M",
             f"{on_top:.0f} MiB", f"{on_top / peak['model_mib']:.2f} x")
        )  # fmt: skip
    head = ("side", "seconds, median (p10 to p90)", "of Torch-Pruning's median", "per-round ratio",
            "processor seconds, all threads", "parameters left",
            "peak memory on top",
            "of the model's")  # fmt: skip
    stages = [
        (side, stage, shown([s[stage] for s in times[side]]))
        for side in SIDES
        for stage in times[side][0]
        if stage not in ("total", "processor")
    ]
    return [
        f"## {job[0].upper()}{job[1:]}\n\n{share:.1%} of the parameters stay; {len(times[SIDES[0]])} rounds.",
        table(head, rows),
        table(("side", "stage", "seconds"), stages),
    ]


if __name__ == "__main__":
    main()
