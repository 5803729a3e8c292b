"""A study of domains as JSON, CSV, a page and printed tables."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vitprune.report.domains import DomainCell, DomainLine, DomainScores, DomainStudy, Selection
from vitprune.report.domains_breaks import Break, breaks
from vitprune.report.paired import Interval, Spread
from vitprune.report.terminal import print_table

Table = tuple[list[str], list[list[str]]]  # headings, lines
LEFT = ("model", "form and score", "chosen by validation", "held-out domains that break")


def domains_json(found: DomainStudy) -> dict[str, Any]:
    """Everything as JSON values; accuracies and their differences lie in 0..1."""
    return {
        **found.about,
        "title": found.title,
        "held": list(found.held),
        "lines": [asdict(line) for line in found.lines()],
        "selections": [asdict(s) for s in found.selections()],
        "cells": [_cell_json(c) for c in found.cells],
    }


def _cell_json(cell: DomainCell) -> dict[str, Any]:
    left = {"found"} | (set() if cell.error else {"error"})
    fields = {name: value for name, value in asdict(cell).items() if name not in left}
    fields["status"] = cell.status
    if cell.found is not None:
        fields |= {"inside": dict(cell.found.inside), "outside": dict(cell.found.outside)}
        fields |= {"oracle": dict(cell.found.oracle), "images": dict(cell.found.images)}
    return fields


def domains_from_json(fields: Mapping[str, Any]) -> DomainStudy:
    """The study that `domains_json` told. Raises LookupError, TypeError or ValueError for other values."""
    left = ("title", "held", "lines", "selections", "cells")
    about = {name: value for name, value in fields.items() if name not in left}
    return DomainStudy(fields["title"], tuple(fields["held"]), tuple(map(_cell, fields["cells"])), about)


def _cell(fields: Mapping[str, Any]) -> DomainCell:
    own = {name: value for name, value in fields.items() if name != "status"}
    sides = {name: own.pop(name) for name in ("inside", "outside", "oracle", "images") if name in own}
    own["speed"] = {int(batch): value for batch, value in own["speed"].items()}
    return DomainCell(**own, found=DomainScores(**sides) if sides else None)


def domains_csv(found: DomainStudy) -> str:
    """A line per cell and domain; empty where nothing was measured."""
    who = ["model", "form", "score", "over", "ratio", "lr", "held", "seed", "key", "status"]
    columns = [*who, "domain", "part", "top1", "images", "params", "macs", "speed_1", "speed_32"]
    columns += ["epoch_s", "train_s", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    for cell in found.cells:
        about: dict[str, Any] = {name: getattr(cell, name) for name in who}
        if cell.found is None:
            writer.writerow(about | {"error": cell.error})
            continue
        about |= {"params": cell.params, "macs": cell.macs, "epoch_s": _or_empty(cell.epoch_s)}
        about["train_s"] = _or_empty(cell.train_s)
        about |= {f"speed_{b}": _or_empty(v) for b, v in cell.speed.items() if b in (1, 32)}
        for part in ("inside", "outside", "oracle"):
            for domain, top1 in getattr(cell.found, part).items():
                images = "" if part == "oracle" else cell.found.images.get(domain, "")
                writer.writerow(about | {"domain": domain, "part": part, "top1": f"{top1:.5f}", "images": images})
    return text.getvalue()


def _or_empty(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def accuracy_table(found: DomainStudy) -> Table:
    """Top-1 in every held-out domain, their mean, the worst, that in source domains, and what pruning costs of them."""
    names = [name for held in found.held for name in held.split("+")]
    headings = ["model", "gone", "form and score", *names, "mean", "worst", "in-domain"]
    headings += ["drop outside", "drop inside", "seeds"]
    return headings, [
        [
            line.model,
            f"{line.ratio:.0%}" if line.ratio else "",
            line.line,
            *(_percent(line.by_domain.get(n)) for n in names),
            _percent(line.mean),
            _percent(line.worst),
            _percent(line.inside),
            _points(line.drop_outside),
            _points(line.drop_inside),
            str(len(line.seeds)),
        ]
        for line in found.lines()
    ]


def break_table(found: DomainStudy) -> Table:
    """From which ratio on every form and score loses more than a point, outside and inside."""
    headings = ["model", "form and score", "mean outside", "in-domain", "held-out domains that break"]
    return headings, [[b.model, b.line, _ratio(b.outside, b), _ratio(b.inside, b), _breaking(b)] for b in breaks(found)]


def _breaking(b: Break) -> str:
    return ", ".join(f"{name} at {ratio:.0%}" for name, ratio in b.by_domain.items()) or "none"


def _ratio(value: float | None, b: Break) -> str:
    return f"above {b.largest:.0%}" if value is None else f"{value:.0%}"


def cost_table(found: DomainStudy) -> Table:
    """What stays, how much faster it is, and what an epoch and all training take, beside the dense model's."""
    lines = [line for line in found.lines() if line.ratio]
    batches = sorted({b for line in lines for b in line.speed})
    headings = ["model", "gone", "form and score", "parameters", "MACs", *(f"speed-up, batch {b}" for b in batches)]
    headings += ["s per epoch", "dense", "s of training", "dense"]
    return headings, [_costs(line, batches) for line in lines]


def _costs(line: DomainLine, batches: list[int]) -> list[str]:
    shares = [f"{line.shares[c]:.1%}" if c in line.shares else "-" for c in ("params", "macs")]
    speeds = [f"{line.speed[b]:.2f}x" if b in line.speed else "-" for b in batches]
    known = (line.epoch_s, line.dense_epoch_s, line.train_s, line.dense_train_s)
    times = ["-" if t is None else f"{t:.1f}" for t in known]
    return [line.model, f"{line.ratio:.0%}", line.line, *shares, *speeds, *times]


def selection_table(found: DomainStudy) -> Table:
    """What choosing among the forms, scores and rates gives: by source domains, and by an oracle."""
    headings = ["model", "gone", "by validation", "by oracle", "chosen by validation"]
    return headings, [_selection(s) for s in found.selections()]


def _selection(s: Selection) -> list[str]:
    return [s.model, f"{s.ratio:.0%}", _percent(s.by_validation), _percent(s.by_oracle), ", ".join(s.chosen[:3])]


def _percent(value: Spread | None) -> str:
    if value is None:
        return "-"
    return f"{100 * value.mean:.2f}" + ("" if value.sd is None else f" ± {100 * value.sd:.2f}")


def _points(value: Interval | None) -> str:
    if value is None:
        return ""
    return f"{100 * value.mean:.2f}" + ("" if value.se is None else f" ± {100 * value.se:.2f}")


def _markdown(table: Table) -> list[str]:
    headings, lines = table
    ruler = [" --- |" if h in LEFT else " ---: |" for h in headings]
    parts = ["| " + " | ".join(headings) + " |", "|" + "".join(ruler)]
    return parts + ["| " + " | ".join(line) + " |" for line in lines]


ABOUT_ACCURACY = """Top-1 in %, mean and standard deviation over seeds. A column with a domain's name: on 80 % of that
domain's images, where neither training nor pruning nor any choice saw the domain. Mean and worst: of these columns,
seed by seed. In-domain: mean over the source domains, on the 20 % of their images that were not trained on, by which
the epoch (and the learning rate) was chosen. "dense, trained on": the dense model with the epochs of fine-tuning that
the pruned ones had. Drops: points that the dense model has more, mean and standard error of the differences by seed;
outside of the mean, inside of in-domain."""
ABOUT_BREAKS = """The smallest of the measured shares at which a model loses more than a point against the dense one, by
more than a standard error where there are several seeds: of the mean over held-out domains, of that over source
domains, and of every held-out domain alone."""
ABOUT_COSTS = """Shares of the dense model's parameters and MACs that stay. Speed-up: the dense model's median time over
the pruned one's, measured in turns, median over cells. Times of an epoch of fine-tuning, validation included, beside
that of the dense model's training on the same images."""
ABOUT_SELECTION = """Among all rows of a model at a ratio, and all learning rates: the mean over held-out domains of
what the source domains' validation images choose, and of what an oracle chooses that sees 20 % of the held-out domain's
images. The oracle's is a bound, not a result."""


def domains_markdown(found: DomainStudy, pictures: dict[str, str]) -> str:
    """A page: the tables with what they mean, a picture per model, failed cells."""
    parts = [f"# {found.title}", ""]
    if found.finished:
        parts += [ABOUT_ACCURACY, "", *_markdown(accuracy_table(found)), ""]
        for model, picture in pictures.items():
            parts += [f"![Top-1 in held-out domains of {model}]({picture})", ""]
    for title, about, table in (
        ("Where it breaks", ABOUT_BREAKS, break_table(found)),
        ("Costs", ABOUT_COSTS, cost_table(found)),
        ("Chosen among all", ABOUT_SELECTION, selection_table(found)),
    ):
        if table[1]:
            parts += [f"## {title}", "", about, "", *_markdown(table), ""]
    if found.failed:
        parts += ["Failed:", "", *(f"- {c.name} ({c.key}): {c.error}" for c in found.failed)]
    return "\n".join(parts).rstrip() + "\n"


def print_domains(found: DomainStudy) -> None:
    """Prints the tables to standard output, and the failed cells below them."""
    for title, (headings, lines) in (
        (found.title, accuracy_table(found)),
        ("where it breaks: the smallest share gone that costs more than a point", break_table(found)),
        ("costs", cost_table(found)),
        ("chosen among all", selection_table(found)),
    ):
        if lines:
            print_table(headings, lines, title, left=[i for i, name in enumerate(headings) if name in LEFT])
            print()
    for c in found.failed:
        print(f"failed: {c.name}: {c.error}")
