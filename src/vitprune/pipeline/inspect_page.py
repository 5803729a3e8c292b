"""`vitprune inspect --html`: one model's groups, costs and limits as a page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from vitprune.pipeline.inspect_run import GroupRow, Inspection
from vitprune.pipeline.report_figures import and_so_on
from vitprune.pipeline.report_run import check_out, write_page
from vitprune.pipeline.versions import versions
from vitprune.plan import Plan
from vitprune.report import width_rows
from vitprune.report.curves import Curve, curve_panel
from vitprune.report.page import Figure, Item, Page, Section, Table, Text, csv_of, render
from vitprune.report.svg import page_style
from vitprune.report.widths import TITLES, untouched, width_panels, widths_csv
from vitprune.report.words import short


def write_inspection(found: Inspection, plan: Plan | None, out: Path, *, force: bool = False) -> Path:
    """The page at `out`, pictures and tables in the folder beside it, whose path is returned.

    plan: by which the model was pruned before, of a saved folder. Raises StoreError when one of both is in use.
    """
    beside = check_out(out, force=force)
    with page_style():
        done = render(inspection_page(found, plan), beside.name)
    write_page(out, beside, done.html, done.files, force=force)
    return beside


def inspection_page(found: Inspection, plan: Plan | None) -> Page:
    """The page, before it is drawn."""
    sections = [_costs(found)]
    if plan is not None and plan.pruned():
        rows = {"kept": width_rows(plan)}
        whole = untouched(rows)
        caption = "Pale: the dense model that it was pruned from."
        caption += f" As they were, so not drawn: {and_so_on(whole)}." if whole else ""
        items = [Figure("widths", caption, width_panels(rows), widths_csv(rows))]
        sections.append(Section("widths", "Widths before and after", items))
    sections += [_groups(found), _stays(found)]
    kinds = {kind: sum(g.kind == kind for g in found.groups) for kind in TITLES}
    counted = ", ".join(f"{n} of {TITLES[kind]}" for kind, n in kinds.items() if n)
    lead = (
        f"{found.model} has {len(found.groups)} prunable groups: {counted}." if found.groups else "Nothing is prunable."
    )
    facts = [
        (short(found.macs), "MACs per image"),
        (short(2 * found.macs), "FLOPs"),
        (short(found.params), "parameters"),
    ]
    facts.append((str(len(found.groups)), "prunable groups"))
    made = f"Made by vitprune {versions().get('vitprune', 'from source')} on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC."
    headline = f"{short(found.macs)} MACs, {short(found.params)} parameters"
    return Page(f"Inspection of {found.model}", headline, lead, facts, sections, made=made)


def _costs(found: Inspection) -> Section:
    panels = []
    for cost, whole, title in (("macs", found.macs, "MACs"), ("params", found.params, "Parameters")):
        curves = []
        for kind, name in TITLES.items():
            mine = _by_block([g for g in found.groups if g.kind == kind], cost)
            if mine and kind != "block":
                values = tuple(100 * v / max(whole, 1) for v in mine.values())
                curves.append(Curve(name, tuple(mine), values))
        if curves:
            alt = f"{title} that go with all units of a group, by kind and block, in percent of the model's"
            panels.append(curve_panel(f"cost-{cost}", title, "%", curves, alt, "block"))
    columns = ["group", "kind", "block", "lanes", "size", "params", "macs", "exact"]
    rows = [
        [g.name, g.kind, "" if g.block is None else g.block, g.lanes, g.size, g.params, g.macs, g.exact]
        for g in found.groups
    ]
    caption = "What goes with all units of a group, in percent of the whole model; groups share some of it."
    return Section("costs", "What it costs, block by block", [Figure("costs", caption, panels, csv_of(columns, rows))])


def _by_block(groups: Sequence[GroupRow], cost: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for g in groups:
        if g.block is not None:
            found[g.block] = found.get(g.block, 0) + (g.macs if cost == "macs" else g.params)
    return dict(sorted(found.items()))


def _groups(found: Inspection) -> Section:
    lines = []
    for g in sorted(found.groups, key=lambda g: -1 if g.block is None else g.block):
        width = str(g.size) if g.lanes == 1 else f"{g.lanes} × {g.size}"
        shares = f"{g.params / max(found.params, 1):.1%}", f"{g.macs / max(found.macs, 1):.1%}"
        kind = g.kind + ("" if g.exact else " (inexact)")
        block = "–" if g.block is None else str(g.block)
        lines.append([g.name, kind, block, width, short(g.params), shares[0], short(g.macs), shares[1]])
    headings = ["group", "kind", "block", "width", "parameters", "share", "MACs", "share"]
    items: list[Item] = [Table("All groups", headings, lines, frozenset({0, 1}), "groups")]
    items += [Text(f"{g.name}: {note}") for g in found.groups for note in g.notes]
    return Section("groups", "Prunable groups", items)


def _stays(found: Inspection) -> Section:
    by_reason: dict[str, list[str]] = {}
    for where, size, reason in found.frozen:
        by_reason.setdefault(reason, []).append(f"{where} ({size})")
    lines = [
        [reason, str(len(places)), ", ".join(places[:6]) + (", …" if len(places) > 6 else "")]
        for reason, places in by_reason.items()
    ]
    items: list[Item] = []
    if lines:
        items.append(Table("By reason", ["reason", "places", "where (size)"], lines, frozenset({0, 2}), "frozen"))
    items += [Text(f"Operator without a rule, what it touches stays: {op}", True) for op in found.unknown_ops]
    items += [Text(note) for note in found.notes]
    return Section("stays", "What must stay, and why", items or [Text("Nothing.")])
