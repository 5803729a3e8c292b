"""What training gave: the tables of all ways and targets, and their picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from math import floor
from pathlib import Path
from statistics import mean
from typing import Any

from record import mean_sd, table

TARGETS = ("params=0.3", "params=0.1")
RATES = ("rate=0.2", "rate=0.4")
PUBLISHED = "macs=0.57"  # what VTP's larger rate leaves in the paper; here that rate leaves more
CONTROL, UNCUT = "dense trained on", "none"  # way, and its target: what these images and epochs do by themselves
AIMS = {"params=0.3": (1.0, 0.3), "params=0.1": (4.0, 2.0)}  # anchor and aim: points lost
VTP_AIM = (1.1, 0.3)
LEAST = 80.0  # top-1, %: what is below is left out of the picture, and said there
Row = dict[str, Any]


def _ways(rows: Sequence[Row], *targets: str) -> Iterator[tuple[str, str, list[Row]]]:
    """(target, way, its rows of all seeds)."""
    for target in targets:
        here = [r for r in rows if r["target"] == target]
        for way in dict.fromkeys(r["way"] for r in here):
            yield target, way, [r for r in here if r["way"] == way]


def page(rows: Sequence[Row], dense: float, total: int, picture: str) -> list[str]:
    """The table of all ways, and what sharing leaves behind; total: parameters of the dense model."""
    listing, left, verdict, small = [], [], [], []
    for target, way, mine in _ways(rows, UNCUT, *TARGETS, *RATES, PUBLISHED):
        lost = [100 * (dense - r["top1"]) for r in mine]
        before = [100 * r["before"] for r in mine if "before" in r]
        stays = [100 * r["params_share"] for r in mine]
        listing.append(
            [target, way, mean_sd(before, 2), mean_sd([100 * r["top1"] for r in mine], 2), mean_sd(lost, 2),
             mean_sd([100 * r["macs"] for r in mine], 1), mean_sd(stays, 1), len(mine)]
        )  # fmt: skip
        if way.startswith(("masks", "vtp")):
            verdict.append([target, way, *_held(target, mean(lost)), len(mine)])
        if way.startswith("masks"):
            masked = [100 * (r["params_share"] - r["behind"] / total) for r in mine]
            trained = mean_sd([100 * r["top1"] for r in mine], 2)
            left.append([target, way, mean_sd(masked, 1), mean_sd(stays, 1), trained, _went_on(mine)])
        small += [
            f"{r['width']} at {target} (seed {r['seed']}, {r['time']:.2f} of the time)" for r in mine if "width" in r
        ]
    found = [f"Dense: {100 * dense:.2f} %. Means over seeds, with the standard deviation where there are several."]
    if verdict:
        found[0] += " Points lost, against the anchor and the aim:"
        found.append(table(["target", "way", "lost", "anchor", "aim", "holds", "seeds"], verdict))
    found += [
        f"![Top-1 of every way]({picture})",
        "All ways. Shares are of the dense model, in percent; `rate`: VTP's share of gates to close, and the others at "
        f"the MACs that it came to; `{UNCUT}`: the dense model with the training alone. Refitted: before the training, "
        "or between search and fine-tuning, where there was a refit:",
        table(["target", "way", "refitted, %", "trained, %", "points lost", "MACs", "parameters", "seeds"], listing),
    ]
    if left:
        found += [
            "What masks count, and what is left after physical removal (parameters in percent of the dense model's); "
            "what went on after the search, by validation images: the units of masks, with weights trained or "
            "refitted, or those that scores had chosen before:",
            table(["target", "way", "not masked", "not removed", "top-1, %", "went on with"], left),
        ]
    if small:
        found.append(f"Widths of the small models, as quick at batch 32 as the one-shot ones: {', '.join(small)}.")
    return found


def _went_on(rows: Sequence[Row]) -> str:
    """How often what went on after the search."""
    names = [r["units"] if r["units"] == "scores" else f"{r['units']}, {r['weights']}" for r in rows if "units" in r]
    return "; ".join(f"{name}: {count}" for name, count in sorted(Counter(names).items())) or "-"


def _held(target: str, lost: float) -> list[str]:
    anchor, aim = AIMS.get(target, VTP_AIM)
    found = round(lost, 2)  # as it is shown
    holds = "aim" if found <= aim else "anchor" if found <= anchor else "no"
    return [f"{lost:.2f}", f"{anchor:g}", f"{aim:g}", holds]


def draw(rows: Sequence[Row], dense: float, path: Path) -> None:
    """Writes the picture: a panel per target, a line per way, a mark per seed and one for their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    groups = [(t, list(_ways(rows, t))) for t in (*TARGETS, *RATES, PUBLISHED)]
    groups = [(target, ways) for target, ways in groups if ways]
    if not groups:
        return
    figure = Figure(
        figsize=(8.5, 0.55 * len(groups) + 0.27 * sum(len(w) for _, w in groups) + 0.6), layout="constrained"
    )
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(groups), 1, sharex=True, squeeze=False, height_ratios=[len(ways) + 1 for _, ways in groups]
    )[:, 0]
    lowest = [min(100 * r["top1"] for r in mine) for _, ways in groups for _, _, mine in ways]
    left = max(LEAST, floor(min((v for v in lowest if v >= LEAST), default=LEAST)) - 0.5)
    for panel, (target, ways) in zip(panels, groups, strict=True):
        ways.sort(key=lambda w: mean(r["top1"] for r in w[2]))
        for place, (_, way, mine) in enumerate(ways):
            values = [100 * r["top1"] for r in mine]
            colour = "#2464ad" if way.startswith(("masks", "vtp")) else "#a85f00"
            if min(values) >= LEAST:
                panel.plot(values, [place] * len(values), "o", color=colour, alpha=0.45, markersize=4, linewidth=0)
                panel.plot([mean(values)], [place], "|", color=colour, markersize=11, markeredgewidth=2)
            else:
                panel.text(left + 0.1, place, f"{mean(values):.1f} %", va="center", fontsize=8, color=colour)
        panel.set_yticks(range(len(ways)), [way for _, way, _ in ways], fontsize=8)
        panel.set_ylim(-0.6, len(ways) - 0.4)
        panel.axvline(100 * dense, color="#59616c", linestyle=":", linewidth=1)
        panel.set_title(target, loc="left", fontsize=9)
        panel.set_xlim(left, 100 * dense + 0.7)
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("top-1, %; dots: seeds, bar: their mean, dotted: dense; blue: masks and VTP")
    figure.savefig(path, dpi=130)
