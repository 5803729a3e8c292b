"""The whole of `vitprune report`: folders of runs -> one page, and its pictures and tables beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from vitprune.errors import StoreError, listed
from vitprune.files import new_folder, write_text
from vitprune.pipeline import report_figures as figures
from vitprune.pipeline import report_parts as parts
from vitprune.pipeline.report_domains import domains_section
from vitprune.pipeline.report_images import images_section
from vitprune.pipeline.report_read import ReadRun, SavedModel, labels_of, read_run
from vitprune.pipeline.versions import versions
from vitprune.progress import Progress, Silent
from vitprune.report.domains import DomainStudy
from vitprune.report.page import Page, Section, Text, render
from vitprune.report.svg import page_style
from vitprune.report.words import part_of, percent, points_lost, short, signed

NAMED = 5  # failures, and parts still to come, that a note tells one by one
MARK = "report.css"  # in a folder of files: it may be replaced
POINT = 1.0  # of top-1 that the smallest model of several may lose to be the headline's


@dataclass(frozen=True, slots=True)
class ReportResult:
    """What was written."""

    out: Path
    files: Path  # pictures and tables
    headline: str
    runs: tuple[ReadRun, ...]
    missing: tuple[tuple[str, str], ...]  # what is not on the page, and why


def run_report(
    folders: Sequence[Path],
    out: Path,
    *,
    data: str | None = None,
    images: bool = True,
    force: bool = False,
    command: str = "",
    progress: Progress | None = None,
) -> ReportResult:
    """Writes a page of the runs in these folders to `out`, and every picture and table into `NAME_files` beside it.

    data: the images' DATA, in place of the one that the run had; images: show those whose prediction changed, where
    the data can be opened. Nothing is there before all is written; an older page is replaced by `force` alone.

    Raises StoreError for folders that hold no finished run, damaged ones, and outputs that are in use.
    """
    said = progress or Silent()
    beside = check_out(out, force=force)
    runs = read_runs(folders)
    said.line(f"read {sum(len(r.models) for r in runs)} models of {len(runs)} runs")
    with page_style():
        page, missing = page_of(runs, data=data, images=images, command=command)
        said.line("drawing")
        done = render(page, beside.name)
    write_page(out, beside, done.html, done.files, force=force)
    return ReportResult(out, beside, page.headline, runs, missing)


def check_out(out: Path, *, force: bool) -> Path:
    """The folder of files beside a page at `out`. Raises StoreError when one of both is in use."""
    beside = out.with_name(f"{out.stem}_files")
    if out.is_dir() or (out.exists() and not force):
        kind = "a folder" if out.is_dir() else "in use"
        raise StoreError(f"a report is written into a new file, but {out} is {kind}; choose another --out, or --force")
    if beside.exists() and any(beside.iterdir()) and not force:
        raise StoreError(f"pictures are written into {beside}, which is in use; choose another --out, or --force")
    return beside


def write_page(out: Path, beside: Path, html: str, files: dict[str, bytes], *, force: bool) -> None:
    """Both at once, or nothing. Raises StoreError when they cannot be written."""
    with new_folder(beside, force=force, marker=MARK) as work:
        for name, content in files.items():
            (work / name).write_bytes(content)
        (work / MARK).write_text("/* pictures and tables of a page that vitprune wrote */\n", "utf-8")
    try:
        write_text(out, html)
    except StoreError:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def read_runs(folders: Sequence[Path]) -> tuple[ReadRun, ...]:
    """The runs, each folder once. Raises StoreError, see `read_run`."""
    once = list({p.resolve(): p for p in folders}.values())
    if not once:
        raise StoreError("a report needs the folder of a run, but got none")
    names = labels_of(once)
    single = len(once) == 1
    found = []
    for path, label in zip(once, names, strict=True):
        alone = single and not (path / "plan.json").is_file()
        found.append(read_run(path, "" if alone else label))
    return tuple(found)


def families_of(models: Sequence[SavedModel]) -> list[list[SavedModel]]:
    """The models by what compares, in order."""
    found: list[list[SavedModel]] = []
    for m in models:
        mine = next((family for family in found if any(m.like(other) for other in family)), None)
        if mine is None:
            found.append([m])
        else:
            mine.append(m)
    return found


def page_of(
    runs: Sequence[ReadRun], *, data: str | None, images: bool, command: str
) -> tuple[Page, tuple[tuple[str, str], ...]]:
    """The page, before it is drawn, and what is not on it."""
    models = [m for run in runs for m in run.models]
    missing: list[tuple[str, str]] = []
    sections: list[Section] = []

    def add(section: Section | None, what: str, why: str) -> None:
        if section is None:
            missing.append((what, why))
        else:
            sections.append(section)

    remarks = _remarks(runs, models)
    if remarks:
        sections.append(Section("remarks", "Please note", remarks))
    if models:
        head = headline_of(models)
        families = families_of(models)
        sections += [parts.asked_section(models), parts.measured_section(families)]
        compared = parts.compared_section(runs)
        sections += [] if compared is None else [compared]
        why = "they need two models of the same dense model and images; give several RUNs, or a sweep"
        add(figures.fronts_section(families, runs), "Fronts of accuracy against MACs and latency", why)
        add(figures.widths_section(models, head), "Widths before and after", "no model on this page is pruned")
    unseen = domains_section(runs)
    add(unseen, "Accuracy in unseen domains", "no run measured it; vitprune dg does")
    why = "no run measured it; vitprune search --method sensitivity does"
    add(figures.sensitivity_section(runs), "Sensitivity map", why)
    probes = figures.probes_section(runs)
    sections += [] if probes is None else [probes]
    if models:
        add(figures.curves_section(models, head), "Learning curves", "no model on this page was trained (--epochs 0)")
        old = f"{head.name} did not keep what it predicted, which versions before this one did not; make the run again"
        why = old if head.pruned else "they are of pruned models, and none is on this page"
        add(figures.classes_section(models, head), "Which classes lost, and confusions", why)
        section, why = images_section(head, data) if images else (None, "left out by --no-images")
        add(section, "Images whose prediction changed", why)
    sections.append(parts.settings_section(runs, command))
    headline, lead, facts = summary(head, models, runs) if models else _without(runs)
    made = f"Made by vitprune {versions().get('vitprune', 'from source')} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    lead = lead.replace(" %", "\N{NO-BREAK SPACE}%")
    title = " · ".join(dict.fromkeys(f"{r.model} on {r.data}" if r.data else r.model for r in runs))
    return Page(title, headline, lead, facts, sections, missing, made), tuple(missing)


def headline_of(models: Sequence[SavedModel]) -> SavedModel:
    """Of the models that compare with the first one: the smallest that loses a point at most, else the best one."""
    family = families_of(models)[0]
    pruned = [m for m in family if m.pruned and parts.change(m) is not None]
    if not pruned:
        return family[0]
    held = [m for m in pruned if (parts.change(m) or 0.0) >= -POINT - 1e-9]
    if held:
        return min(held, key=lambda m: (m.last.macs, -(m.last.top1 or 0.0)))
    return max(pruned, key=lambda m: (m.last.top1 or 0.0, -m.last.macs))


def summary(
    head: SavedModel, models: Sequence[SavedModel], runs: Sequence[ReadRun]
) -> tuple[str, str, list[tuple[str, str]]]:
    """Headline, the sentence below it, and the most important numbers."""
    last, dense, shares, points = head.last, head.dense, head.point.shares(), parts.change(head)
    run = next(r for r in runs if any(m is head for m in r.models))
    images = f" of {last.images:,} test images" if last.images else ""
    ends = "" if last.ci95 is None else f" (95 % interval {percent(last.ci95[0])} to {percent(last.ci95[1])})"
    if not head.pruned or points is None:
        headline = f"Top-1 {percent(last.top1)} %" if last.top1 is not None else f"{short(last.macs)} MACs"
        lead = f"{run.model}, trained on {run.data}: top-1 {percent(last.top1)} %{ends}{images}."
        return (
            headline,
            lead,
            [(f"{percent(last.top1)} %", "top-1"), (short(last.macs), "MACs"), (short(last.params), "parameters")],
        )
    metric, what = "macs", "MACs"
    if head.point.asked.startswith("params"):
        metric, what = "params", "parameters"
    elif head.point.asked.startswith("latency") and "latency" in shares:
        metric, what = "latency", "time"
    headline = f"{part_of(shares[metric])} of the {what}, {points_lost(points)}"
    lead = (
        f"{run.model}, pruned on {run.data}: top-1 {percent(last.top1)} %{ends}{images}, dense {percent(dense.top1)} %."
    )
    pair = parts.paired(head)
    if pair is not None and pair.low is not None and pair.high is not None:
        ends = f"{signed(100 * pair.low)} to {signed(100 * pair.high)}"
        unsure = ", so these images cannot tell it from none" if pair.low <= 0 <= pair.high else ""
        lead += f" Image by image the difference is {signed(points)} points (95 % interval {ends}){unsure}."
    if len(models) > 1:
        pruned = [m for m in models if m.pruned]
        rule = "the smallest that loses a point of top-1 at most" if points >= -POINT - 1e-9 else "the most accurate"
        lead += f" Of {len(pruned)} models on this page it is {rule}, chosen by these images: {head.name}."
    facts = [(signed(points), "points of top-1"), (f"{shares['macs']:.1%}", "of the MACs")]
    facts.append((f"{shares['params']:.1%}", "of the parameters"))
    if last.latency_ms and dense.latency_ms:
        facts.append((f"{last.latency_ms / dense.latency_ms:.1%}", "of the time, batch 1"))
    if last.latency32_ms and dense.latency32_ms:
        facts.append((f"{last.latency32_ms / dense.latency32_ms:.1%}", "of the time, batch 32"))
    if last.bytes and dense.bytes:
        facts.append((f"{last.bytes / dense.bytes:.1%}", "of the file size"))
    return headline, lead, facts


def _without(runs: Sequence[ReadRun]) -> tuple[str, str, list[tuple[str, str]]]:
    """Of studies of domains, and of searches that have not saved a model yet."""
    study = next((r.domains for r in runs if r.domains is not None), None)
    if study is not None:
        return _unseen(study)
    count = sum(len(r.probes) for r in runs)
    return f"{count} probes, no model yet", "The search has not saved a model yet; the command below goes on.", []


def _unseen(study: DomainStudy) -> tuple[str, str, list[tuple[str, str]]]:
    """Of the first model, where least is removed: the form that is best on the domains that were trained on."""
    pruned = [line for line in study.lines() if line.ratio and line.inside and line.drop_outside]
    if not pruned:
        return f"{len(study.finished)} models, none pruned yet", "The study's command goes on.", []
    least = min(line.ratio for line in pruned if line.model == pruned[0].model)
    mine = [line for line in pruned if (line.model, line.ratio) == (pruned[0].model, least)]
    best = max(mine, key=lambda line: 0.0 if line.inside is None else line.inside.mean)
    outside, inside = (0.0 if d is None else -100 * d.mean for d in (best.drop_outside, best.drop_inside))
    headline = f"{best.ratio:.0%} of the {study.of} gone, {points_lost(outside)} in unseen domains"
    lead = (
        f"{best.model} by {best.line}, the best of {len(mine)} forms and scores on images of the domains that were "
        f"trained on: {points_lost(inside)} there. Held out: {', '.join(study.held)}; seeds: {len(best.seeds)}."
    )
    facts = [(signed(outside), "points in unseen domains"), (signed(inside), "points in domains trained on")]
    if best.worst is not None:
        facts.append((f"{percent(best.worst.mean)} %", "top-1 in the worst domain"))
    facts += [(f"{speed:.2f}x", f"speed-up at batch {batch}") for batch, speed in best.speed.items()]
    return headline, lead, facts


def _remarks(runs: Sequence[ReadRun], models: Sequence[SavedModel]) -> list[Text]:
    """What does not compare, failed, or is not finished."""
    found: list[Text] = []
    if len(families_of(models)) > 1:
        different = "; ".join(
            f"{r.name}: {r.model} on {r.data}"
            + (f", {r.models[0].last.images:,} images" if r.models and r.models[0].last.images else "")
            for r in runs
        )
        found.append(
            Text(
                "Accuracies compare only within a group: the models on this page come from different dense models, or "
                f"were measured on different images ({different}). Each group has its own table and front.",
                True,
            )
        )
    devices = {str(m.metrics.get("device")) for m in models if m.last.latency_ms is not None}
    if len(devices) > 1:
        found.append(Text(f"Times were measured on different devices: {', '.join(sorted(devices))}.", True))
    for run in runs:
        for asked, error in run.failed[:NAMED]:
            found.append(Text(f"{run.name}, {asked} failed: {error}", True))
        if len(run.failed) > NAMED:
            found.append(Text(f"{run.name}: {len(run.failed) - NAMED} more failed", True))
        if run.left:
            again = f"the same command goes on: {run.command}" if run.command else "the same command goes on"
            found.append(Text(f"{run.name} is not finished, {listed(run.left, NAMED)} still to come; {again}", True))
    return found
