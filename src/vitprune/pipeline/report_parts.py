"""The sections of a report that are tables, each from what runs left; None where they left nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence

from vitprune.pipeline.report_read import ReadRun, SavedModel
from vitprune.report import Row
from vitprune.report.classes import same_images
from vitprune.report.comparison_table import comparison_table, difference_table
from vitprune.report.front import COSTS
from vitprune.report.page import Beside, Code, Item, Section, Table, Text
from vitprune.report.paired import Interval, by_image
from vitprune.report.words import percent, short, signed


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


def settings_section(runs: Sequence[ReadRun], report: str) -> Section:
    """Commands, seeds, versions and everything that was set."""
    items: list[Item] = []
    for run in runs:
        command = run.command or "# not kept: made by an earlier version, or by a call from Python"
        items.append(Code(command, f"The command of {run.name}"))
        items.append(Code(json.dumps(run.settings, indent=1), f"All settings of {run.name}", folded=True))
    models = [m for run in runs for m in run.models]
    alike: dict[tuple[str, str, str], list[str]] = {}
    for m in models:
        plan, made = m.contents.plan, m.metrics.get("run") or {}
        seed = made.get("seed", plan.settings.get("seed", (m.metrics.get("training") or {}).get("seed", "–")))
        versions = ", ".join(f"{k} {v}" for k, v in plan.versions.items()) or "–"
        alike.setdefault((str(seed), str(m.metrics.get("device", "–")), versions), []).append(m.name)
    lines = [
        ["all models" if len(alike) == 1 < len(models) else ", ".join(names), *what] for what, names in alike.items()
    ]
    if lines:
        headings = ["model", "seed", "device", "versions"]
        items.append(Table("Seeds and versions", headings, lines, frozenset({0, 2, 3}), "versions"))
    if report:
        items.append(Code(report, "The command of this page"))
    return Section("settings", "Settings, and how to run it again", items)
