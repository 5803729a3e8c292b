"""Searched shares against fixed ratios: MACs at equal accuracy, and accuracy at equal MACs, on all test images.

    python benchmarks/searched.py                                    # the shipped Fashion-MNIST ViT, three seeds
    python benchmarks/searched.py --model hf:DINOV2 --images 256 --val-images 2000 --drops 1 --seeds 0
    python benchmarks/searched.py --page-only

Searches see validation images alone. Fixed ratios have the same scores and calibration images, once with the same
rotation and refit too, once as cut, as fixed ratios are elsewhere; their curve is measured on the test images, and the
fixed ratio that is as accurate as a searched model on these very images is found by bisection, being measured too.
Cells are stored as they are measured; a search that was stopped goes on in its folder.
"""

from __future__ import annotations

import argparse
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from cells import Cells, wanted
from one_shot import texts
from record import mean_sd, parser, setting, table, write
from searched_picture import Line, draw
from subject import Subject, add_options

import vitprune
from vitprune.errors import VitpruneError
from vitprune.normal import Z95
from vitprune.pipeline.search_settings import SearchSettings
from vitprune.pipeline.setup import DataSettings
from vitprune.progress import make_progress
from vitprune.rotate import Rotated, ordered

SPACES = {"attention, MLP": ("mlp", "qk", "v"), "and residual": ("mlp", "qk", "v", "residual")}
FIXED = (("uniform", "attention, MLP"), ("uniform", "and residual"), ("uniform as cut", "attention, MLP"))
GRID = (0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4, 0.36, 0.32, 0.29, 0.26, 0.23, 0.2)
SCORE = "output-error"
EQUAL = 0.1  # points within which two accuracies are equal
BELOW = 2  # steps of the grid that a fixed ratio is tried below the searched model
ANCHOR, AIM = 56.91, 50.0  # percent of the fixed ratio's cost: published, and ours
Row = dict[str, Any]


class Bench:
    """Measures the cells that are missing."""

    def __init__(self, subject: Subject, cells: Cells, given: argparse.Namespace) -> None:
        self.subject, self.cells, self.given = subject, cells, given
        self.progress = make_progress()
        self._held: dict[Any, Any] = {}

    def dense(self) -> float:
        """Top-1 of the dense model in 0..1."""
        settings = {**self.subject.settings, "way": "dense"}
        if settings not in self.cells:
            self.cells.put(settings, {"top1": self.subject.top1(self.subject.origin.model)})
        return float((self.cells.get(settings) or {})["top1"])

    def searched(self, method: str, per: str, space: str, asked: str, seed: int) -> None:
        """One search; asked: "drop=1" or a target."""
        given = self.given
        settings = {**self.subject.settings, "way": method, "per": per, "space": space, "asked": asked, "seed": seed}
        settings |= {"val_images": given.val_images, "trials": given.trials, "minutes": given.minutes}
        if settings in self.cells or not wanted(given.only, settings):
            return
        how = SearchSettings(
            method=method, per=per, kinds=SPACES[space], calibration=self.subject.images, baselines=False,  # type: ignore[arg-type]
            trials=given.trials, minutes=given.minutes,
        )  # fmt: skip
        metric, _, value = asked.partition("=")
        goal = {"max_drop": float(value)} if metric == "drop" else {"target": asked}
        data = DataSettings(self.subject.data, val_images=given.val_images)
        began = time.monotonic()
        limits = [bound.replace(" ", "-") for bound in _bounds(settings)]
        name = [self.subject.label, method, f"per-{per}", f"space-{list(SPACES).index(space)}", asked, *limits]
        place = given.searches / "-".join([*name, f"seed-{seed}"])
        found = vitprune.search(
            self.subject.spec, data, place, **goal, settings=how, seed=seed, device="cpu", progress=self.progress
        )  # type: ignore[arg-type]
        values = {
            "top1": self.subject.top1(vitprune.load(found.model.folder)),
            "macs": found.found.costs["macs"], "params": found.found.costs["params"],
            "val_lost": found.found.lost.points, "val_error": found.found.lost.error, "probes": len(found.probes),
            "probe_seconds": sum(p.seconds for p in found.probes), "seconds": time.monotonic() - began,
            "shares": dict(found.found.shares), "sizes": found.model.plan.sizes(),
        }  # fmt: skip
        self._put(settings, values)

    def fixed(self, way: str, space: str, macs: float, seed: int) -> Row:
        """The uniform ratio of these kinds that costs at most so much."""
        settings = {
            **self.subject.settings,
            "way": way,
            "space": space,
            "asked": f"macs={macs:.4f}",
            "seed": seed,
        }
        found = self.cells.get(settings)
        if found is not None:
            return found
        graph, kinds, batches, origin = self.subject.graph, SPACES[space], self._batches(seed), self.subject.origin
        whole = way == "uniform"
        rotated = self._once(
            ("rotated", space, seed, whole),
            lambda: vitprune.rotate(origin, graph, batches, kinds) if whole else origin,
        )
        scores = self._once(
            ("scores", space, seed, whole),
            lambda: self._scores(rotated, kinds, seed),
        )
        plan = vitprune.allocate(graph, scores, f"macs={macs}", scope="local", kinds=kinds)
        small = vitprune.shrink(rotated, graph, plan)
        if whole:
            vitprune.refit(rotated, small, graph, plan, batches)
        values = {name: plan.obtained[name]["ratio"] for name in ("macs", "params")}
        values["top1"] = self.subject.top1(small)
        self._put(settings, values)
        return values

    def _scores(self, model: Any, kinds: Sequence[str], seed: int) -> Any:
        found = vitprune.score(self.subject.graph, model, SCORE, seed, self._batches(seed), kinds=kinds)
        return ordered(found, model) if isinstance(model, Rotated) else found

    def level(self, way: str, space: str, beside: Row) -> Row | None:
        """The cheapest measured uniform ratio within EQUAL points, else one bisected towards; None off the grid.

        Tried are the searched model's own MACs, then the grid from there with steps that double.
        """
        seed, top1, grid = beside["seed"], beside["top1"], sorted(GRID)
        steps = 0
        for macs in self._ladder(way, grid, beside["macs"]):
            curve = self._stored(way, space, seed)
            if {r["top1"] >= top1 for r in curve} == {True, False}:
                break
            if curve and curve[-1]["macs"] > 0.98 * grid[-1] and curve[-1]["top1"] < top1:
                break  # even the most costly is not as good
            try:
                self.fixed(way, space, macs, seed)
            except VitpruneError as error:  # out of reach
                self.progress.line(f"{way} {space} {macs}: {error}")
        while True:
            curve = self._stored(way, space, seed)
            near = [r for r in curve if abs(r["top1"] - top1) <= EQUAL / 100]
            above = next((i for i, r in enumerate(curve) if r["top1"] >= top1), None)
            if near or not above:  # the curve is not monotone: what is cheaper and as good counts
                return near[0] if near else None
            if steps >= self.given.steps:
                return curve[above]
            self.fixed(way, space, (curve[above - 1]["macs"] + curve[above]["macs"]) / 2, seed)
            steps += 1

    def _ladder(self, way: str, grid: Sequence[float], macs: float) -> list[float]:
        """MACs to try until one ratio is less accurate and one more; of what is cut alone the most comes first."""
        at, ups = bisect_left(grid, macs), [0]
        while at + ups[-1] < len(grid) - 1:
            ups.append(min(2 * ups[-1] + 1, len(grid) - 1 - at))
        up = [grid[at + n] for n in ups] if at < len(grid) else []
        down = [grid[n] for n in range(at - 1, max(-1, at - 1 - BELOW), -1)]
        return ([grid[-1]] if way.endswith("as cut") else []) + [round(macs, 3), *up, *down]

    def _stored(self, way: str, space: str, seed: int) -> list[Row]:
        mine = {**self.subject.settings, "way": way, "space": space, "seed": seed}
        return sorted(
            (r for r in self.cells if all(r.get(k) == v for k, v in mine.items())), key=lambda r: float(r["macs"])
        )

    def _batches(self, seed: int) -> Any:
        return self._once(("batches", seed), lambda: self.subject.calibration(seed))

    def _once(self, what: Any, make: Any) -> Any:
        if what not in self._held:
            self._held[what] = make()
        return self._held[what]

    def _put(self, settings: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.cells.put(settings, values)
        said = " ".join(str(settings.get(n, "")) for n in ("way", "per", "space", "asked", "seed"))
        self.progress.line(f"{said}: {100 * values['top1']:.2f} % at {values['macs']:.3f} of the MACs")


def page(bench: Bench, dense: float) -> list[str]:
    """Searched models, each beside the fixed ratios of its seed."""
    lines, every, blocks, drawn = [], [], [], []
    rows = [r for r in bench.cells if bench.subject.owns(r) and r["way"] not in ("dense", "uniform", "uniform as cut")]
    keys = list(dict.fromkeys(_key(r) for r in rows))
    for key in keys:
        mine = [r for r in rows if _key(r) == key]
        shares: dict[tuple[str, str], list[float]] = {which: [] for which in FIXED}
        gains: list[float] = []
        for r in mine:
            level = {which: bench.level(*which, r) for which in FIXED}
            same = bench.fixed(*FIXED[0], round(r["macs"], 3), r["seed"]) if r["macs"] > 0.25 else None
            for which, row in level.items():
                if row is not None:
                    shares[which].append(100 * r["macs"] / row["macs"])
            if same is not None:
                gains.append(100 * (r["top1"] - same["top1"]))
            cells = [f"{100 * row['macs']:.1f} ({100 * row['top1']:.2f})" if row else "-" for row in level.values()]
            every.append(
                [*key, r["seed"], f"{100 * r['top1']:.2f}", f"{100 * r['macs']:.1f}", *cells, r["probes"],
                 f"{r['probe_seconds'] / 60:.1f}", f"{r['val_lost']:.2f} ± {Z95 * r['val_error']:.2f}"]
            )  # fmt: skip
        lines.append(
            [*key, len(mine), mean_sd([100 * (dense - r["top1"]) for r in mine], 2),
             mean_sd([100 * r["macs"] for r in mine], 1), *(mean_sd(v, 1) for v in shares.values()), mean_sd(gains, 2)]
        )  # fmt: skip
        best = mine[0]
        blocks.append(f"{', '.join(key)}, seed {best['seed']}: " + _widths(bench, best["sizes"]))
        drawn.append(Line(", ".join(key), tuple(r["sizes"] for r in mine)))
    picture = f"{date.today().isoformat()}-searched-{bench.subject.label}.png"
    draw(bench.subject.graph, drawn, bench.given.out / picture)
    return [
        f"Dense: {100 * dense:.2f} %. Means over seeds, ± their standard deviation. MACs in percent of the dense "
        f"model's; then in percent of those of the fixed ratio that is as accurate (published: {ANCHOR} %, aim: "
        f"{AIM:g} %): one ratio for attention and MLPs, or for these and the residual width, both rotated and refitted "
        "as the searched model is, and one ratio for attention and MLPs as cut. Last: points of top-1 more than the "
        "first of them at equal MACs, where it reaches these.",
        table(["method", "per", "space", "asked", "seeds", "points lost, test", "MACs", "of uniform's",
               "of uniform's with residual", "of uniform's as cut", "points more at equal MACs"], lines),
        "Every search. Fixed ratios: MACs (and top-1) of the one that is as accurate on the test images, within "
        f"{EQUAL} points where there is one. Minutes are of the clock, pauses of a shared machine included:",
        table(["method", "per", "space", "asked", "seed", "top-1", "MACs", "uniform", "uniform with residual",
               "uniform as cut", "probes",
               "minutes of probes", "points lost, validation"], every),
        f"![Share of each kind that stays, block by block]({picture})",
        "What was found, sizes that stay per block; the picture shows the mean over seeds, with smallest and largest:",
        "\n".join(f"- {text}" for text in blocks),
    ]  # fmt: skip


def _key(row: Row) -> tuple[str, str, str, str]:
    """What a search was asked; rows that differ in the seed alone belong together."""
    return row["way"], row["per"], row["space"], ", ".join([row["asked"], *_bounds(row)])


def _bounds(row: Row) -> list[str]:
    return [f"{row[name]:g} {name}" for name in ("trials", "minutes") if row[name]]


def _widths(bench: Bench, sizes: Mapping[str, int]) -> str:
    graph, parts = bench.subject.graph, []
    for kind in dict.fromkeys(g.kind for g in graph.groups):
        some = [g for g in graph.groups if g.kind == kind and sizes[g.name] != g.size]
        if some:
            whole = [g for g in graph.groups if g.kind == kind]
            parts.append(f"{kind} {' '.join(str(sizes[g.name]) for g in whole)} of {whole[0].size}")
    return "; ".join(parts)


def main() -> None:
    """Measures what is missing and writes the dated page."""
    options = parser(__doc__)
    add_options(options)
    options.add_argument("--seeds", type=lambda v: [int(s) for s in texts(v)], default=[0, 1, 2])
    options.add_argument("--drops", type=texts, default=["1"])
    options.add_argument("--targets", type=texts, default=[])
    options.add_argument("--methods", type=texts, default=["ratio-search"])
    options.add_argument("--per", type=texts, default=["module"])
    options.add_argument("--spaces", type=lambda v: [list(SPACES)[int(i)] for i in texts(v)], default=list(SPACES))
    options.add_argument("--steps", type=int, default=6, help="of the bisection between two fixed ratios")
    options.add_argument("--val-images", type=int, default=None)
    options.add_argument("--trials", type=int, default=None)
    options.add_argument("--minutes", type=float, default=None)
    options.add_argument("--searches", type=Path, default=Path("runs/searched"), help="folders of searches, to go on")
    options.add_argument("--only", action="append", default=[], metavar="NAME=VALUE,...", help="cells to measure")
    options.add_argument("--page-only", action="store_true", help="search nothing")
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    subject = Subject.of(given)
    bench = Bench(subject, Cells(given.out / f"searched-{subject.label}.jsonl"), given)
    dense = bench.dense()
    asked = [f"drop={d}" for d in given.drops] + [f"macs={t}" for t in given.targets]
    if not given.page_only:
        for seed in given.seeds:
            for method in given.methods:
                for per in given.per:
                    for space in given.spaces:
                        for goal in asked:
                            bench.searched(method, per, space, goal, seed)
    about = setting(given.threads, given.seed) | subject.describe(dense)
    about["search"] = (
        f"judged by {given.val_images or 'all'} validation images, which the test images are not among, drawn by the "
        "seed; the dense model may have been trained on some, where the seed is not that of its training"
    )
    about["cells"] = "measured in one or several runs of this command, the bisection of fixed ratios in up to 6 steps"
    about["fixed ratio"] = f"scope local, score {SCORE}, rotated and refitted with the same images as the search"
    about["command"] = about["command"].replace(" --page-only", "")
    sections = page(bench, dense)
    write(
        given.out,
        f"searched-{subject.label}",
        f"{subject.label}: searched ratios",
        sections,
        bench.cells.path.name,
        about,
    )


if __name__ == "__main__":
    main()
