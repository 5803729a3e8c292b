"""The sections of a report, each from what runs left; None where they left nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from statistics import fmean

from vitprune.pipeline.outcome import alike
from vitprune.pipeline.report_read import ReadRun, SavedModel
from vitprune.report import Front, FrontPoint, Row, sensitivity_csv, width_rows
from vitprune.report.classes import class_names, class_panel, class_rows, confusion_panel, pair_rows, same_images
from vitprune.report.comparison_table import comparison_table, difference_table
from vitprune.report.curves import Curve, curve_panel
from vitprune.report.front import COSTS
from vitprune.report.page import Beside, Code, Figure, Item, Section, Table, Text, csv_of
from vitprune.report.paired import Interval, by_image
from vitprune.report.panel import Panel
from vitprune.report.scatter import Dot, Series, scatter
from vitprune.report.sensitivity import MEANING
from vitprune.report.sensitivity_picture import sensitivity_panels
from vitprune.report.widths import TITLES, untouched, width_panels, widths_csv
from vitprune.report.words import percent, short, signed
from vitprune.search import Probe

LINES = 8  # models that a picture tells apart
CLASS_LINES = 200  # classes of a table; its file has them all


def paired(model: SavedModel) -> Interval | None:
    """Top-1 of the saved model minus that of the dense one, on the same images; None where that was not kept."""
    if model.answers is None or model.dense_answers is None or not same_images(model.dense_answers, model.answers):
        return None
    return by_image([(model.answers.hits(), model.dense_answers.hits())])


def change(model: SavedModel) -> float | None:
    """Points of top-1 gained; below 0: lost."""
    if model.last.top1 is None or model.dense.top1 is None:
        return None
    return 100 * (model.last.top1 - model.dense.top1)


def told(model: SavedModel) -> str:
    """A model in one line, for its mark in a picture."""
    last, shares = model.last, model.point.shares()
    ends = "" if last.ci95 is None else f" ({percent(last.ci95[0])} to {percent(last.ci95[1])})"
    time = "" if "latency" not in shares else f", {shares['latency']:.1%} of the time"
    cost = f"{shares['macs']:.1%} of the MACs, {shares['params']:.1%} of the parameters{time}"
    return f"{model.name}: top-1 {percent(last.top1)} %{ends}, {cost}"


def asked_section(models: Sequence[SavedModel]) -> Section:
    """What was asked of every model and what it has, and what the runs noted about that."""
    lines, timed = [], any("latency" in m.contents.plan.obtained for m in models)
    costs = [c for c in COSTS if timed or c != "latency"]
    for m in models:
        got, plan = m.contents.plan.obtained, m.contents.plan
        shares = [f"{got[c]['ratio']:.4f}" if c in got else "–" for c in costs]
        lines.append([m.name, m.point.asked, *shares, plan.method or "–", str(plan.settings.get("scope", "–"))])
    headings = ["model", "asked", *(COSTS[c] for c in costs), "method", "scope"]
    words = frozenset({0, 1, len(headings) - 2, len(headings) - 1})
    table = Table("Asked, and obtained as a share of the dense model", headings, lines, words, "asked")
    items: list[Item] = [table]
    notes: dict[str, list[str]] = {}
    for m in models:
        for note in m.contents.plan.settings.get("notes", []):
            notes.setdefault(str(note), []).append(m.name)
    for note, names in notes.items():
        items.append(Text(f"{note} ({', '.join(names) if len(names) < 4 else f'{len(names)} models'})"))
    for m in models:
        if m.contents.plan.settings.get("before"):
            items.append(
                Text(
                    f"{m.name} was pruned more than once: dense is here the model as it came to the last time, but "
                    "what was obtained is a share of the library's own model."
                )
            )
    return Section("asked", "Asked and obtained", items)


HEADINGS = (
    *("model", "top-1 %", "95 % interval", "points", "parameters", "MACs"),
    *("ms, batch 1", "ms, batch 32", "peak MiB", "weights MB"),
)


def _cells(name: str, row: Row, dense: Row) -> list[str | Beside]:
    def number(value: float | None, whole: float | None, text: str) -> str | Beside:
        if value is None:
            return "–"
        return text if row is dense or not whole else Beside(text, f"{value / whole:.1%}")

    ends = "–" if row.ci95 is None else f"{percent(row.ci95[0])} to {percent(row.ci95[1])}"
    lost = "" if row is dense or row.top1 is None or dense.top1 is None else signed(100 * (row.top1 - dense.top1))
    return [
        name,
        percent(row.top1),
        ends,
        lost,
        number(row.params, dense.params, short(row.params)),
        number(row.macs, dense.macs, short(row.macs)),
        number(row.latency_ms, dense.latency_ms, f"{row.latency_ms or 0:.2f}"),
        number(row.latency32_ms, dense.latency32_ms, f"{row.latency32_ms or 0:.1f}"),
        number(row.memory_mib, dense.memory_mib, f"{row.memory_mib or 0:.1f}"),
        number(row.bytes, dense.bytes, f"{(row.bytes or 0) / 1e6:.2f}"),
    ]


def dense_rows(family: Sequence[SavedModel]) -> dict[str, Row]:
    """What was measured of the dense model, once for each of the images that it met."""
    found: dict[tuple[float | None, str], tuple[str, Row]] = {}
    for m in family:
        seen = "" if m.hits is None else m.hits.images
        found.setdefault((m.dense.top1, seen), (m.name, m.dense))
    if len(found) == 1:
        return {"dense": next(iter(found.values()))[1]}
    return {f"dense, as for {name}": row for name, row in found.values()}


def measured_section(families: Sequence[Sequence[SavedModel]]) -> Section:
    """Dense against pruned; the stages of a single model, the saved models of several."""
    items: list[Item] = []
    models = [m for family in families for m in family]
    for number, family in enumerate(families, 1):
        first = family[0]
        if len(models) == 1:
            lines = [_cells(row.name, row, first.dense) for row in first.point.rows]
        else:
            lines = [_cells(name, row, row) for name, row in dense_rows(family).items()]
            lines += [_cells(m.name, m.last, m.dense) for m in family]
        of = f"{first.last.images:,} images" if first.last.images else "no images"
        title = f"Top-1 is of {of}" + (f", group {number}" if len(families) > 1 else "")
        items.append(Table(title, HEADINGS, lines, name=f"measured-{number}" if len(families) > 1 else "measured"))
    if len(models) > 1:
        stages = [_cells(f"{m.name}: {row.name}", row, m.dense) for m in models for row in m.point.rows[1:]]
        items.append(Table("Before and after refit and training", HEADINGS, stages, name="stages", folded=True))
    items.append(
        Text(
            "Latency is the median of one forward pass of the whole batch, dense and pruned model in turns; peak "
            "memory that of weights and forward pass together, of one image. The interval is Wilson's, of one model by "
            "itself; a difference between two on the same images is known better than both intervals say."
        )
    )
    differences = []
    for m in models:
        pair = paired(m)
        if pair is not None and pair.low is not None and pair.high is not None and m.pruned:
            p = "–" if pair.p is None else f"{pair.p:.2g}"
            ends = f"{signed(100 * pair.low)} to {signed(100 * pair.high)}"
            differences.append([m.name, signed(100 * pair.mean), ends, p])
    if differences:
        headings = ["model", "points more than dense", "95 % interval", "p (McNemar)"]
        items.append(Table("Difference from the dense model, image by image", headings, differences, name="paired"))
    return Section("measured", "Dense against pruned", items)


def compared_section(runs: Sequence[ReadRun]) -> Section | None:
    """The tables of comparisons."""
    items: list[Item] = []
    for run in runs:
        if run.comparison is None:
            continue
        name = f"-{len(items) + 1}" if items else ""
        headings, lines = comparison_table(run.comparison)
        items.append(Table(run.comparison.title, headings, lines, frozenset({0, 1}), f"comparison{name}"))
        headings, lines = difference_table(run.comparison)
        if lines:
            title = f"Points of top-1 more than {run.comparison.baseline}, with the same seeds"
            items.append(Table(title, headings, lines, frozenset({0, 1}), f"differences{name}"))
            items.append(
                Text(
                    "By seeds: what other seeds would give. By images: what other test images would, with these models."
                )
            )
    return Section("compared", "Methods compared", items) if items else None


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
        label = "" if len(runs) == 1 else f"{run.path.name} "
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
            found.append(Series(run.path.name, tuple(dots)))
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
        caption = f"{MEANING} Measured by the search in {run.path.name}."
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
        caption = f"{run.path.name}: {len(run.probes)} probes, judged by validation images, which the other sections do"
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


def settings_section(runs: Sequence[ReadRun], report: str) -> Section:
    """Commands, seeds, versions and everything that was set."""
    items: list[Item] = []
    for run in runs:
        command = run.command or "# not kept: made by an earlier version, or by a call from Python"
        items.append(Code(command, f"The command of {run.path.name}"))
        items.append(Code(json.dumps(run.settings, indent=1), f"All settings of {run.path.name}", folded=True))
    lines = []
    for run in runs:
        for m in run.models:
            plan, made = m.contents.plan, m.metrics.get("run") or {}
            seed = made.get("seed", plan.settings.get("seed", (m.metrics.get("training") or {}).get("seed", "–")))
            versions = ", ".join(f"{k} {v}" for k, v in plan.versions.items()) or "–"
            lines.append([m.name, str(seed), str(m.metrics.get("device", "–")), versions])
    items.append(
        Table("Seeds and versions", ["model", "seed", "device", "versions"], lines, frozenset({0, 2, 3}), "versions")
    )
    if report:
        items.append(Code(report, "The command of this page"))
    return Section("settings", "Settings, and how to run it again", items)
