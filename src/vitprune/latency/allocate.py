"""A plan for a latency: a table measured on the device, an exact solver, and measuring until it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitprune.allocate import DEFAULT_SCOPE, Scope, Target
from vitprune.allocate.allocate import Choices, choices, obtained, plan_at
from vitprune.arrays import Ints, Scores
from vitprune.errors import TargetError
from vitprune.evaluate.latency import using_threads
from vitprune.latency.branches import find_structure
from vitprune.latency.cache import cache_folder, device_name, make_key, read_table, write_table
from vitprune.latency.clock import Clock, WallClock, at_batch
from vitprune.latency.search import Compared, search
from vitprune.latency.solver import Solver
from vitprune.latency.table import Table, make_grid, measure_table
from vitprune.plan import Plan
from vitprune.progress import Progress, Silent
from vitprune.shrink import shrink
from vitprune.trace.graph import KINDS, Graph


@dataclass(frozen=True, slots=True)
class Timing:
    """How latency is measured: on the device that the model and the example are on, in the example's dtype."""

    batch: int = 1  # images per forward pass
    threads: int | None = None  # of the CPU; None: as torch has them
    tolerance: float = 0.03  # relative distance of what is obtained from what was asked
    rounds: int = 8  # models that are built and measured on the way, at most
    seconds: float = 15.0  # of one comparison of dense and pruned, about and at most; the table takes up to twice that
    cache: Path | None = None  # folder of tables; None: `cache_folder()`

    def __post_init__(self) -> None:
        if self.batch < 1 or self.rounds < 1 or (self.threads is not None and self.threads < 1):
            raise TargetError(
                "latency needs a batch, rounds and threads of at least 1, but got "
                f"batch {self.batch}, rounds {self.rounds}, threads {self.threads}"
            )
        if not 0 < self.tolerance < 1 or not self.seconds > 0:
            raise TargetError(
                f"latency needs a tolerance in (0, 1) and seconds above 0, but got {self.tolerance:g}, {self.seconds:g}"
            )


def allocate_latency(
    model: nn.Module,
    graph: Graph,
    scores: Scores,
    target: Target | str,
    example: Sequence[Any],
    *,
    timing: Timing | None = None,
    scope: Scope = DEFAULT_SCOPE,
    kinds: Iterable[str] | None = None,
    round_to: int = 8,
    minimum: int | Mapping[str, int] | None = None,
    protect: Iterable[str] = (),
    ratios: Mapping[str, float] | None = None,
    layer_ratios: Mapping[str, float] | None = None,
    within: Plan | None = None,
    clock: Clock | None = None,
    table: Table | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan whose model takes the time asked for, within `timing.tolerance`, and keeps what is worth most.

    model, graph, example: the dense model, its trace, and the arguments that it was traced with (a tuple).
    target: "latency=0.5x", a share of the dense model's time, or "latency=12ms", of the whole batch.
    The other settings are those of `vitprune.allocate`. clock: what measures, else a clock of the device. table: that
    of the same model, settings and timing, where it is at hand.

    `obtained["latency"]` has value and dense (medians, ms of the batch), ratio (the median of both, turn by turn), p10
    and p90 of the pruned model, batch, threads, device. Where the tolerance cannot be met, `settings["notes"]` says
    what lies nearest.

    Raises TargetError for malformed settings, and for a target out of reach (with the smallest reachable, measured).
    """
    wanted = Target.parse(target) if isinstance(target, str) else target
    if wanted.metric != "latency":
        raise TargetError(f"allocate_latency needs a target such as latency=0.5x or latency=12ms, but got {wanted}")
    how, said = timing or Timing(), progress or Silent()
    space = choices(
        graph,
        scores,
        wanted,
        scope=scope,
        kinds=kinds,
        round_to=round_to,
        minimum=minimum,
        protect=protect,
        ratios=ratios,
        layer_ratios=layer_ratios,
        within=within,
    )
    args = at_batch(example, how.batch)
    watch = clock or make_clock(args, how)

    def build(sizes: Ints) -> nn.Module:
        return shrink(model, graph, plan_at(space, sizes, {}), check=False, example=tuple(example)).eval()

    def smallest(compared: Compared) -> TargetError:
        return out_of_reach(space, wanted, compared)

    with using_threads(how.threads) as threads:
        if table is None:
            table = get_table(space, args, how, model, build, watch, said, cached=clock is None)
        solver = Solver(space, table)
        dense_ms = dense_time(watch, model) if wanted.absolute else table.dense_ms
        wanted.budget(dense_ms)
        found = search(
            solver,
            wanted,
            dense_ms,
            build,
            model,
            watch,
            tolerance=how.tolerance,
            rounds=how.rounds,
            seconds=how.seconds,
            smallest=smallest,
            progress=said,
        )
    latency = measured(found.compared, args, how, threads) | {"rounds": found.rounds}
    plan = plan_at(space, found.solution.sizes, {"latency_ms" if wanted.absolute else "latency": wanted.value})
    notes = [*space.settings["notes"], *table.structure.notes, *([found.note] if found.note else [])]
    return replace(
        plan,
        obtained={**obtained(graph, plan.sizes()), "latency": latency},
        settings={**plan.settings, "notes": notes},
    )


def make_clock(args: tuple[Any, ...], how: Timing) -> Clock:
    """A clock of the device that the arguments lie on."""
    return WallClock(args, how.threads)


def dense_time(clock: Clock, model: nn.Module) -> float:
    """ms of the model as it is now."""
    return float(np.median(clock.whole([model], 7)))


def measured(compared: Compared, args: tuple[Any, ...], how: Timing, threads: int) -> dict[str, Any]:
    """What `Plan.obtained["latency"]` holds, see `allocate_latency`."""
    median, p10, p90 = compared.pruned_ms
    return {
        "value": round(median, 4),
        "dense": round(compared.dense_ms, 4),
        "ratio": round(compared.ratio, 5),
        "p10": round(p10, 4),
        "p90": round(p90, 4),
        "batch": how.batch,
        "threads": threads,
        "device": device_name(args[0].device),
        "dtype": str(args[0].dtype).removeprefix("torch."),
        "turns": len(compared.times),
    }


def get_table(
    space: Choices,
    args: tuple[Any, ...],
    how: Timing,
    model: nn.Module,
    build: Callable[[Ints], nn.Module],
    clock: Clock,
    progress: Progress,
    *,
    cached: bool,
) -> Table:
    """The table that lies on disk, or else one that is measured with the threads of now and, if `cached`, put there."""
    structure = find_structure(space.graph, space.clusters)
    grid = make_grid(structure)
    fixed = {g.name: int(c.sizes[0]) for c in space.clusters if len(c.sizes) == 1 for g in c.groups}
    key = make_key(space.graph, args, torch.get_num_threads(), structure, grid, fixed)
    folder = how.cache or cache_folder()
    table = read_table(folder, key, structure, grid) if cached else None
    if table is None:
        table = measure_table(structure, space.clusters, model, build, clock, progress, 2 * how.seconds)
        if cached:
            write_table(folder, key, table)
    else:
        progress.line(f"latency table of this device from {folder}")
    return table


def out_of_reach(space: Choices, target: Target, smallest: Compared) -> TargetError:
    """The error for a target that not even the smallest model meets, as measured."""
    kinds = space.settings["kinds"]
    others = [k for k in KINDS if k not in kinds and any(g.kind == k for g in space.graph.groups)]
    remedy = f", or add kinds ({', '.join(others)})" if others else ""
    ms, _, _ = smallest.pruned_ms
    return TargetError(
        f"target {target} cannot be reached: the smallest reachable with kinds {','.join(kinds)} and round_to "
        f"{space.settings['round_to']} is latency={smallest.ratio:.3g}x ({ms:.4g}ms of {smallest.dense_ms:.4g}ms, "
        f"measured); ask for more, lower the minimum{remedy}"
    )
