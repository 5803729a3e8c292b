"""The section of a report that tells of domains that were held out."""

from __future__ import annotations

from collections.abc import Sequence

from vitprune.pipeline.report_read import ReadRun
from vitprune.report import DomainStudy
from vitprune.report.domains_drops import drop_panels
from vitprune.report.domains_json import domains_csv
from vitprune.report.domains_panels import domain_panels
from vitprune.report.domains_table import study_tables
from vitprune.report.page import Figure, Item, Section, Table, Text

TOPS = "against what is removed. Bars: standard deviation over seeds."
DROPS = (
    "what pruning costs where the model was trained and where it was not; dashed: a point. Where the disc lies right "
    "of the diamond, unseen domains lose more than validation tells. Bars: standard error of the differences by seed."
)


def domains_section(runs: Sequence[ReadRun]) -> Section | None:
    """Accuracy in domains that were held out, what pruning costs there and at home, and what it gains in time."""
    items: list[Item] = []
    for number, study in enumerate((r.domains for r in runs if r.domains is not None), 1):
        end = f"-{number}" if number > 1 else ""
        for place, table in enumerate(study_tables(study)):
            items.append(Text(table.about))
            items.append(Table(table.title, table.headings, table.lines, table.left, f"{table.name}{end}"))
            items += () if place else _pictures(study, f"domains{end}")
    return Section("domains", "Unseen domains", items) if items else None


def _pictures(study: DomainStudy, prefix: str) -> list[Item]:
    """Figures for every model that has finished cells: what is lost, and what is left."""
    found: list[Item] = []
    for place, model in enumerate(study.models, 1):
        for panels, name, caption in (
            (drop_panels(study, model, f"{prefix}-drops-{place}"), "-drops", DROPS),
            (domain_panels(study, model, f"{prefix}-{place}"), "", TOPS),
        ):
            if panels:
                found.append(Figure(f"{prefix}{name}-{place}", f"{model}, {caption}", panels, domains_csv(study)))
    return found
