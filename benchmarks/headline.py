"""The README's picture: accuracy against MACs, vitprune's default beside Torch-Pruning's best, from the stored cells.

    python benchmarks/headline.py                # docs/headline.png, and the same values as text

Nothing is measured here: `one_shot.py` and `fine_tuned.py` did. vitprune's line is what `vitprune prune` does by
default, as the mean over the calibration draws; Torch-Pruning's is the best of all its measured lines at every point,
by the test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import one_shot_page
from cells import Cells
from fine_tuned import EPOCHS, at_chosen_rates
from record import RESULTS

DOCS = Path(__file__).parents[1] / "docs"
OURS, THEIRS, LONGEST = "vitprune", "Torch-Pruning 1.6.1, best line", max(EPOCHS)
COLORS = {OURS: "#2364aa", THEIRS: "#c8553d"}
WIDE = (94, 25)  # MACs that are shown, in percent; the values beside the last ones have their place after them
GAP = 5.5  # percentage points between two values written beside each other
Point = tuple[float, float]  # share of the MACs, top-1


@dataclass(frozen=True, slots=True)
class Panel:
    """One model: its files' label, its title, and the images of the cells that are meant; None: all there are."""

    label: str
    title: str
    images: Mapping[str, int | None]


PANELS = (
    Panel("fmnist-vit", "ViT, trained on Fashion-MNIST", {"images": 512, "test_images": None}),
    Panel("dinov2-98", "DINOv2 ViT-S/14, fitted to Fashion-MNIST", {"images": 256, "test_images": 1_000}),
)


@dataclass(frozen=True, slots=True)
class Curves:
    """What a panel shows: the dense model's top-1, and the points of each tool before and after training."""

    dense: float
    cut: Mapping[str, Sequence[Point]]
    trained: Mapping[str, Sequence[Point]]


def curves(one_shot: Iterable[Mapping[str, Any]], fine_tuned: Iterable[Mapping[str, Any]], panel: Panel) -> Curves:
    """The points of a panel from the rows of both benchmarks."""

    def meant(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        return [dict(row) for row in rows if all(row[name] == count for name, count in panel.images.items())]

    before, after = meant(one_shot), meant(fine_tuned)
    series = one_shot_page.groups([row for row in before if row["tool"] != "dense"])
    cut = {OURS: one_shot_page.default(series), THEIRS: series["Torch-Pruning"]}
    trained: dict[str, dict[float, float]] = {OURS: {}, THEIRS: {}}
    for row in at_chosen_rates(after, min(EPOCHS), sorted({row["lr"] for row in after})):
        if row["epochs"] == LONGEST:
            best = trained[OURS if row["tool"] == "vitprune" else THEIRS]
            best[row["target"]] = max(row["top1"], best.get(row["target"], 0.0))
    return Curves(
        next(row["top1"] for row in before if row["tool"] == "dense"),
        {name: one_shot_page.frontier(lines) for name, lines in cut.items()},
        {name: sorted(best.items()) for name, best in trained.items()},
    )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Rising heights moved up or down until they are `gap` apart, each run of close ones about its middle."""
    runs: list[list[float]] = []
    for height in heights:
        runs.append([height])
        while len(runs) > 1 and _placed(runs[-1], gap)[0] < _placed(runs[-2], gap)[-1] + gap:
            last = runs.pop()
            runs[-1] += last
    return [height for run in runs for height in _placed(run, gap)]


def _placed(run: Sequence[float], gap: float) -> list[float]:
    first = sum(run) / len(run) - gap * (len(run) - 1) / 2
    return [first + gap * i for i in range(len(run))]


def draw(panels: Mapping[str, Curves], path: Path) -> None:
    """Writes the picture: a panel per model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.1), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
        ends = []
        for name, color in COLORS.items():
            for points, what, style in (
                (found.cut[name], "no training", {"linestyle": "-", "marker": "o"}),
                (found.trained[name], f"after {LONGEST} epochs", {"linestyle": "--", "marker": "s", "mfc": "white"}),
            ):
                xs, ys = [100 * x for x, _ in points], [100 * y for _, y in points]
                axes.plot(xs, ys, color=color, markersize=5, label=f"{name}: {what}", **style)
                ends.append((ys[0], xs[0], color))
        axes.plot(WIDE, [100 * found.dense] * 2, color="0.45", linestyle=":", linewidth=1, label="dense")
        for height, (y, x, color) in zip(_apart([y for y, _, _ in sorted(ends)], GAP), sorted(ends), strict=True):
            axes.annotate(f"{y:.1f} %", (x, y), (x - 1.5, height), color=color, va="center", fontsize=9)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set(xlabel="multiply-accumulates [% of the dense model's]", xlim=(WIDE[0], 15), ylim=(0, 103))
        axes.set_xticks([90, 75, 60, 50, 40, 33, 25])
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("top-1 [%]")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    """Draws what is stored."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", type=Path, default=RESULTS, help="folder of the stored cells")
    options.add_argument("--out", type=Path, default=DOCS / "headline.png")
    given = options.parse_args()
    found = {}
    for panel in PANELS:
        one_shot, tuned = (given.results / f"{name}-{panel.label}.jsonl" for name in ("one-shot", "fine-tuned"))
        found[panel.title] = curves(Cells(one_shot), Cells(tuned), panel)
    draw(found, given.out)
    for title, shown in found.items():
        print(f"{title}: dense {100 * shown.dense:.2f}")
        for what, lines in (("no training", shown.cut), (f"{LONGEST} epochs", shown.trained)):
            for name, points in lines.items():
                print(f"  {name}, {what}: " + ", ".join(f"{x:.0%} {100 * y:.2f}" for x, y in reversed(points)))


if __name__ == "__main__":
    main()
