"""The tables of a study of domains, as a page and printed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vitprune.markdown import markdown_table
from vitprune.report.domains import DomainLine, DomainStudy, Selection
from vitprune.report.domains_breaks import Break, Edge, breaks
from vitprune.report.paired import Interval, Spread
from vitprune.report.terminal import print_table
from vitprune.report.words import plus_minus

Rows = tuple[list[str], list[list[str]]]  # headings, lines
LEFT = ("model", "form and score", "chosen by validation", "held-out domains that break")


@dataclass(frozen=True)
class StudyTable:
    """One of a study's tables, and what its columns mean."""

    name: str
    title: str
    about: str
    headings: list[str]
    lines: list[list[str]]

    @property
    def left(self) -> frozenset[int]:
        """Places of the columns that are text."""
        return frozenset(i for i, heading in enumerate(self.headings) if heading in LEFT)


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


def accuracy_table(found: DomainStudy) -> Rows:
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


def break_table(found: DomainStudy) -> Rows:
    """From which ratio on every form and score loses more than a point, outside and inside."""
    headings = ["model", "form and score", "mean outside", "in-domain", "held-out domains that break"]
    return headings, [[b.model, b.line, _edge(b.outside), _edge(b.inside), _breaking(b)] for b in breaks(found)]


def _breaking(b: Break) -> str:
    return ", ".join(f"{name} at {ratio:.0%}" for name, ratio in b.by_domain.items()) or "none"


def _edge(edge: Edge) -> str:
    if edge.at is not None:
        return f"{edge.at:.0%}"
    return "-" if edge.up_to is None else f"above {edge.up_to:.0%}"


def cost_table(found: DomainStudy) -> Rows:
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


def selection_table(found: DomainStudy) -> Rows:
    """What choosing among the forms, scores and rates gives: by source domains, and by an oracle."""
    headings = ["model", "gone", "by validation", "by oracle", "chosen by validation"]
    return headings, [_selection(s) for s in found.selections()]


def _selection(s: Selection) -> list[str]:
    return [s.model, f"{s.ratio:.0%}", _percent(s.by_validation), _percent(s.by_oracle), ", ".join(s.chosen[:3])]


def _percent(value: Spread | None) -> str:
    return "-" if value is None else plus_minus(value.mean, value.sd)


def _points(value: Interval | None) -> str:
    return "" if value is None else plus_minus(value.mean, value.se)


def study_tables(found: DomainStudy) -> tuple[StudyTable, ...]:
    """The tables of a study that have lines, in their order on a page; the first has the study's title."""
    every = (
        StudyTable("domains", found.title, ABOUT_ACCURACY, *accuracy_table(found)),
        StudyTable(
            "domains-breaks",
            "Where it breaks: the smallest share gone that costs more than a point",
            ABOUT_BREAKS,
            *break_table(found),
        ),
        StudyTable("domains-costs", "Costs", ABOUT_COSTS, *cost_table(found)),
        StudyTable("domains-choice", "Chosen among all", ABOUT_SELECTION, *selection_table(found)),
    )
    return tuple(table for table in every if table.lines)


def domains_markdown(found: DomainStudy, pictures: Mapping[str, str]) -> str:
    """A page: the tables with what they mean, pictures (what they show -> file) below the first, failed cells."""
    parts = [f"# {found.title}", ""]
    for place, table in enumerate(study_tables(found)):
        parts += [f"## {table.title}", ""] if place else []
        parts += [table.about, "", *markdown_table(table.headings, table.lines, table.left), ""]
        for shown, file in () if place else pictures.items():
            parts += [f"![{shown}]({file})", ""]
    if found.failed:
        parts += ["Failed:", "", *(f"- {c.name} ({c.key}): {c.error}" for c in found.failed)]
    return "\n".join(parts).rstrip() + "\n"


def print_domains(found: DomainStudy) -> None:
    """Prints the tables to standard output, and the failed cells below them."""
    for table in study_tables(found):
        print_table(table.headings, table.lines, table.title, left=sorted(table.left))
        print()
    for c in found.failed:
        print(f"failed: {c.name}: {c.error}")
