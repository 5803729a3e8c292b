"""The sections of a report that are pictures, each from what runs left; None where they left nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from vitprune.pipeline.outcome import alike
from vitprune.pipeline.report_parts import dense_rows
from vitprune.pipeline.report_read import ReadRun, SavedModel
from vitprune.report import Front, FrontPoint, sensitivity_csv, width_rows
from vitprune.report.classes import class_names, class_panel, class_rows, confusion_panel, pair_rows, same_images
from vitprune.report.curves import Curve, curve_panel
from vitprune.report.front import COSTS
from vitprune.report.page import Figure, Item, Section, Table, csv_of
from vitprune.report.panel import Panel
from vitprune.report.scatter import Dot, Series, scatter
from vitprune.report.sensitivity import MEANING
from vitprune.report.sensitivity_picture import sensitivity_panels
from vitprune.report.widths import TITLES, untouched, width_panels, widths_csv
from vitprune.report.words import percent, signed
from vitprune.search import Probe

LINES = 8  # models that a picture tells apart
CLASS_LINES = 200  # classes of a table; its file has them all


def told(model: SavedModel) -> str:
    """A model in one line, for its mark in a picture."""
    last, shares = model.last, model.point.shares()
    ends = "" if last.ci95 is None else f" ({percent(last.ci95[0])} to {percent(last.ci95[1])})"
    time = "" if "latency" not in shares else f", {shares['latency']:.1%} of the time"
    cost = f"{shares['macs']:.1%} of the MACs, {shares['params']:.1%} of the parameters{time}"
    return f"{model.name}: top-1 {percent(last.top1)} %{ends}, {cost}"


def fronts_section(families: Sequence[Sequence[SavedModel]], runs: Sequence[ReadRun]) -> Section | None:
    """Top-1 against MACs and against latency, a figure for each family of models that compare."""
    items: list[Item] = []
    for number, family in enumerate((f for f in families if len(f) > 1), 1):
        points = {p.name: p for p in alike([m.point for m in family])}
        best = Front("", tuple(points.values())).best()
        end = f"-{number}" if number > 1 else ""
        panels: list[Panel] = []
        for cost, short_name in (("macs", "MACs"), ("latency", "latency")):
            series = _series(family, runs, points, best[cost], cost)
            if not any(s.dots for s in series):
                continue
            tops = [row.top1 for row in dense_rows(family).values() if row.top1 is not None]
            dense = fmean(tops) if tops else None
            batch = {p.time.batch for p in points.values() if p.time is not None}
            unit = f", batch {batch.pop()}" if cost == "latency" and len(batch) == 1 else ""
            alt = f"Top-1 against {short_name}, share of the dense model's: " + "; ".join(
                f"{d.label or s.name} {d.x:.0%} {d.y:.2f} %" for s in series for d in s.dots[:12]
            )
            below = f"{short_name}{unit}, share of the dense model's"
            title = f"Top-1 against {short_name}"
            panels.append(
                scatter(f"front-{cost}{end}", title, below, series, None if dense is None else 100 * dense, alt)
            )
        rows = [
            [
                m.name, m.point.asked, *(f"{points[m.name].shares().get(c, float('nan')):.5f}" for c in COSTS),
                "" if m.last.top1 is None else f"{m.last.top1:.5f}", *(m.last.ci95 or ("", "")),
                *(int(m.name in best[c]) for c in COSTS),
            ]
            for m in family
        ]  # fmt: skip
        headings = ["model", "asked", *(f"{c}_share" for c in COSTS), "top1", "ci95_low", "ci95_high"]
        csv = csv_of([*headings, *(f"front_{c}" for c in COSTS)], rows)
        caption = (
            "Filled marks lie on the front: no other model is as cheap and more accurate, or as accurate and cheaper. "
            "Bars are 95 % intervals of single models, for methods that are compared the standard deviation over seeds."
        )
        items.append(Figure(f"fronts{end}", caption, panels, csv))
    return Section("fronts", "Accuracy against cost", items) if items else None


def _series(
    family: Sequence[SavedModel],
    runs: Sequence[ReadRun],
    points: Mapping[str, FrontPoint],
    best: Sequence[str],
    cost: str,
) -> list[Series]:
    """A series for every run, of a comparison for every method."""
    found: list[Series] = []
    for run in runs:
        mine = [m for m in family if any(m is other for other in run.models)]
        label = "" if len(runs) == 1 else f"{run.name} "
        if run.comparison is not None and mine:
            for method in run.comparison.methods:
                dots = []
                for s in run.comparison.summaries():
                    if s.method == method and s.top1 is not None and cost in s.shares:
                        y, sd = 100 * s.top1.mean, 100 * (s.top1.sd or 0.0)
                        of = f"mean of {s.top1.n} seeds, ± {sd:.2f}" if s.top1.sd is not None else "one seed"
                        text = f"{method}, {s.asked}: {y:.2f} % ({of}), {s.shares[cost]:.1%} of the {COSTS[cost]}"
                        dots.append(Dot(s.shares[cost], y, y - sd, y + sd, s.asked, text))
                found.append(Series(f"{label}{method}", tuple(dots)))
            continue
        dots = []
        for m in mine:
            shares, last = points[m.name].shares(), m.last
            if cost in shares and last.top1 is not None:
                low, high = (100 * v for v in last.ci95) if last.ci95 is not None else (None, None)
                on = m.name in best
                dots.append(Dot(shares[cost], 100 * last.top1, low, high, m.point.asked, told(m), on))
        if dots:
            found.append(Series(run.name, tuple(dots)))
    return found


def few(models: Sequence[SavedModel], headline: SavedModel) -> list[SavedModel]:
    """As many models as a picture tells apart: the headline's and others spread over their costs."""
    if len(models) <= LINES:
        return list(models)
    order = sorted(models, key=lambda m: m.last.macs / m.dense.macs)
    chosen = {round(i * (len(order) - 1) / (LINES - 2)) for i in range(LINES - 1)}
    return [m for i, m in enumerate(order) if i in chosen or m is headline]


def some_of(shown: Sequence[SavedModel], models: Sequence[SavedModel]) -> str:
    """A sentence where not all are shown."""
    return "" if len(shown) == len(models) else f" {len(shown)} of {len(models)} models are drawn; the CSV has all."


def and_so_on(kinds: Sequence[str]) -> str:
    """Kinds of group by their names."""
    return ", ".join(TITLES[kind] for kind in kinds)


def widths_section(models: Sequence[SavedModel], headline: SavedModel) -> Section | None:
    """Widths before and after, by kind and place in the model."""
    pruned = [m for m in models if m.contents.plan.pruned()]
    if not pruned:
        return None
    shown = few(pruned, headline)
    panels = width_panels({m.name: width_rows(m.contents.plan) for m in shown})
    whole = untouched({m.name: width_rows(m.contents.plan) for m in shown})
    caption = (
        "Pale: the dense model. Heads are counted per block, query/key and value dims per head, MLPs in hidden units."
        f"{f' As they were, so not drawn: {and_so_on(whole)}.' if whole else ''}{some_of(shown, pruned)}"
    )
    csv = widths_csv({m.name: width_rows(m.contents.plan) for m in pruned})
    return Section("widths", "Widths before and after", [Figure("widths", caption, panels, csv)])


def sensitivity_section(runs: Sequence[ReadRun]) -> Section | None:
    """What each part of each block costs to lose, where a search measured it."""
    items: list[Item] = []
    with_rows = [run for run in runs if run.sensitivity]
    for number, run in enumerate(with_rows, 1):
        panels = list(sensitivity_panels(run.sensitivity))
        end = "" if number == 1 else f"-{number}"
        panels = [Panel(p.name + end, p.alt, p.figure) for p in panels]
        caption = f"{MEANING} Measured by the search in {run.name}."
        items.append(Figure(f"sensitivity{end}", caption, panels, sensitivity_csv(run.sensitivity)))
    return Section("sensitivity", "Sensitivity", items) if items else None


def probes_section(runs: Sequence[ReadRun]) -> Section | None:
    """What searches tried, and what they found."""
    items: list[Item] = []
    for number, run in enumerate((r for r in runs if r.probes), 1):
        end = "" if number == 1 else f"-{number}"
        dense = {float(g["dense_top1"]) for g in run.goals.values()}
        chosen = {int(g["probe"]): name for name, g in run.goals.items()}
        panels = []
        for cost in ("macs", "latency"):
            series = _probe_series(run.probes, chosen, cost)
            if series:
                images = run.probes[0].quality.images
                alt = f"Top-1 on {images:,} validation images against {COSTS[cost]} of {len(run.probes)} probes"
                below = f"{COSTS[cost]}, share of the dense model's"
                top = 100 * dense.pop() if len(dense) == 1 else None
                dense = set() if top is None else {top / 100}
                panels.append(scatter(f"probes-{cost}{end}", f"Probes by {COSTS[cost]}", below, series, top, alt))
        rows = [
            [p.number, p.origin, p.quality.top1, p.lost.points, p.lost.error, *(p.costs.get(c, "") for c in COSTS)]
            for p in run.probes
        ]
        csv = csv_of(["probe", "origin", "top1", "lost_points", "lost_error", *(f"{c}_share" for c in COSTS)], rows)
        found = "; ".join(f"probe {n} for {goal}" for n, goal in chosen.items())
        caption = f"{run.name}: {len(run.probes)} probes, judged by validation images, which the other sections do"
        caption += f" not use. {f'Chosen: {found}.' if found else 'Nothing is chosen yet.'}"
        items.append(Figure(f"probes{end}", caption, panels, csv))
    return Section("probes", "What the search tried", items) if items else None


def _probe_series(probes: Sequence[Probe], chosen: Mapping[int, str], cost: str) -> list[Series]:
    fixed = ("uniform", "cascade")
    groups: dict[str, list[Dot]] = {}
    for p in probes:
        if cost in p.costs:
            name = "chosen" if p.number in chosen else f"fixed ratio, {p.origin}" if p.origin in fixed else "probe"
            text = (
                f"probe {p.number}, {p.origin}: {100 * p.quality.top1:.2f} %, {p.costs[cost]:.1%} of the {COSTS[cost]}"
            )
            text += f"; chosen for {chosen[p.number]}" if p.number in chosen else ""
            groups.setdefault(name, []).append(Dot(p.costs[cost], 100 * p.quality.top1, told=text))
    order = sorted(groups, key=lambda n: (n != "probe", n == "chosen", n))
    return [Series(n, tuple(groups[n]), joined=False) for n in order]


def curves_section(models: Sequence[SavedModel], headline: SavedModel) -> Section | None:
    """Loss and validation top-1 by epoch, where there was training."""
    trained = [m for m in models if (m.metrics.get("history") or {}).get("epochs")]
    if not trained:
        return None
    losses, tops, rows = [], [], []
    shown = few(trained, headline)
    for m in trained:
        history = m.metrics["history"]
        epochs = history["epochs"]
        numbers = [e["epoch"] + 1 for e in epochs]
        start = history.get("start_val_top1")
        before = [] if start is None else [100 * start]
        if any(m is other for other in shown):
            losses.append(Curve(m.name, tuple(numbers), tuple(e["loss"] for e in epochs)))
            zero = [0] if before else []
            tops.append(Curve(m.name, (*zero, *numbers), (*before, *(100 * e["val_top1"] for e in epochs))))
        rows += [[m.name, 0, "", start, "", ""]] if before else []
        rows += [[m.name, e["epoch"] + 1, e["loss"], e["val_top1"], e["lr"], e["seconds"]] for e in epochs]
    last = "; ".join(f"{c.name}: {c.values[-1]:.2f} %" for c in tops)
    panels = [
        curve_panel("curves-top1", "Validation top-1", "%", tops, f"Validation top-1 by epoch, at the end {last}"),
        curve_panel("curves-loss", "Training loss", "", losses, "Mean training loss by epoch"),
    ]
    caption = f"Fine-tuning; epoch 0 is before it, on the validation images.{some_of(shown, trained)}"
    csv = csv_of(["model", "epoch", "loss", "val_top1", "lr", "seconds"], rows)
    return Section("curves", "Learning curves", [Figure("curves", caption, panels, csv)])


def classes_section(models: Sequence[SavedModel], headline: SavedModel) -> Section | None:
    """Which classes lost, and which mistakes grew; None where the headline's model did not keep its answers."""
    dense, answers = headline.dense_answers, headline.answers
    if dense is None or answers is None or not same_images(dense, answers) or not headline.pruned:
        return None
    names = headline.contents.classes
    rows = class_rows(dense, answers, names)
    panels = [class_panel(rows)]
    matrix = confusion_panel(dense, answers, names)
    panels += [] if matrix is None else [matrix]
    worse = sum(r.change < 0 for r in rows)
    caption = f"{headline.name}: {worse} of {len(rows)} classes lost, {sum(r.change > 0 for r in rows)} gained. "
    caption += "With few images of a class a single one moves it by several points."
    csv = csv_of(
        ["class", "images", "dense", "pruned", "points"],
        [[r.name, r.images, r.dense, r.pruned, r.change] for r in rows],
    )
    items: list[Item] = [Figure("classes", caption, panels, csv)]
    pairs = pair_rows(dense, answers, names)
    if pairs:
        headings = ["class", "taken for", "images, dense", "images, pruned"]
        lines = [[p.label, p.predicted, str(p.dense), str(p.pruned)] for p in pairs]
        items.append(Table("Mistakes that grew most", headings, lines, frozenset({0, 1}), "mistakes"))
    known = [
        m for m in few(models, headline)
        if m.pruned and m.answers is not None and m.dense_answers is not None
        and same_images(dense, m.answers) and same_images(m.dense_answers, m.answers)
    ]  # fmt: skip
    changes = [
        {r.name: r.change for r in class_rows(m.dense_answers, m.answers, names)}
        for m in known
        if m.dense_answers and m.answers
    ]
    named = class_names(dense, answers, names)
    lines = [[r.name, str(r.images), *(signed(c[r.name]) for c in changes)] for r in rows if r.name in named][
        :CLASS_LINES
    ]
    title = "Points gained by class" + ("" if len(rows) <= CLASS_LINES else f", the first {CLASS_LINES} of {len(rows)}")
    items.append(Table(title, ["class", "images", *(m.name for m in known)], lines, name="class-points", folded=True))
    return Section("classes", "Which classes lost", items)
