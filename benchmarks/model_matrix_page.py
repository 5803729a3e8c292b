"""The rows of the model matrix as a page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vitprune.markdown import markdown_table

KINDS = ("residual", "heads", "qk", "v", "mlp", "block")
TOLERANCE = 1e-5
Row = Mapping[str, Any]

HEAD = """# Models

Written by `python benchmarks/model_matrix.py`; do not edit. {date}; {versions}.

Small models with random weights, built from the libraries' own classes without network. For each, half of the units of
every group are removed: one kind at a time, then all kinds but whole branches at once. The shrunk model is compared
with the dense one whose removed parameters are zeroed (norms see the kept channels): the largest difference of the
outputs relative to the largest output, in float32, must stay below 1e-5.

**{exact} of {tried}** removals in the {listed} listed models are exact, and **{exact_b} of {tried_b}** in the
{beyond} models beyond the list; {refused}. No row is wrong in silence: what is not exact is flagged before anything is
cut, or refused with a reason.

| column | what it says |
| --- | --- |
| residual ... block | number of groups; `ok`: exact; `flagged`: said beforehand not to equal zeroing; `refused` |
| all | the relative difference with half of all kinds gone |
| batches | batch sizes 1, 2 and 5 agree row by row, though the trace saw batch 2 only |
| grad | every parameter that gets a gradient in the dense model gets a finite one |
| copy | `copy.deepcopy` gives equal outputs and shares nothing; state-dict keys and module classes are unchanged |
| compile | `torch.compile(fullgraph=True)`, backend `aot_eager` |
| export | `torch.export`; `ok`: with a free batch size, `fixed`: with a fixed one only |
| ONNX | onnxruntime gives the same; `not dense`: the exporter fails on the dense model too; `.`: not run (second way) |
| MACs | the cost polynomial equals `FlopCounterMode` to the last MAC, dense and shrunk; `.`: images and texts |
"""


def gap(value: Any) -> str:
    """A relative difference."""
    return "0" if value == 0 else f"{value:.0e}"


def verdict(value: Any) -> str:
    """ok, or what went wrong."""
    if value is None:
        return "."
    if isinstance(value, dict) and "dense too" in value:
        return "not dense"
    if isinstance(value, dict) and "error" in value:
        return "error"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "ok" if value < TOLERANCE else gap(value)
    return "ok" if value in ("", [], True) else "error"


def kind_cell(row: Row, kind: str) -> str:
    """Number of groups of a kind, and how removing them went."""
    if kind not in row["groups"]:
        return ""
    return f"{len(row['groups'][kind])} {outcome(row, kind)}"


def outcome(row: Row, kind: str) -> str:
    """ok, flagged, refused, or the difference where that is wrong."""
    found = row["alone"].get(kind) if kind != "all" else row["all"]
    if "refused" in found:
        return "refused"
    flagged = any(k == kind or kind == "all" for _, k, _ in row["inexact"])
    if found["gap"] < TOLERANCE and found["parameters"]:
        return "ok"
    return f"flagged ({gap(found['gap'])})" if flagged else f"**{gap(found['gap'])}**"


def export_cell(value: Any) -> str:
    """ok, fixed, or error."""
    if not isinstance(value, dict) or "error" in value:
        return "error"
    if value["gap"] >= TOLERANCE:
        return gap(value["gap"])
    return "ok" if value["batch"] == "free" else "fixed"


def macs_cell(value: Any) -> str:
    """Whether both counts agree."""
    if value is None:
        return "."
    return "ok" if "error" not in value and all(a == b for a, b in value.values()) else "error"


def line(row: Row) -> list[str]:
    """The cells of one model."""
    name = f"`{row['case']}`"
    if "refused" in row:
        return [name, *[""] * len(KINDS), "refused", *[""] * 7]
    cells = [name, *(kind_cell(row, kind) for kind in KINDS)]
    if "refused" in row["all"]:
        return [*cells, "refused", *[""] * 7]
    copies = "ok" if verdict(row["copy"]) == "ok" and row["keys"] else "error"
    shown = gap(row["all"]["gap"]) if outcome(row, "all") == "ok" else outcome(row, "all")
    return [
        *cells, shown, verdict(row["batches"]), verdict(row["backward"]), copies, verdict(row["compile"]),
        export_cell(row["export"]), verdict(row["onnx"]), macs_cell(row["macs"]),
    ]  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """All models of a part of the matrix, by family."""
    head = ["model", *KINDS, "all", "batches", "grad", "copy", "compile", "export", "ONNX", "MACs"]
    lines = [line(row) for row in sorted(rows, key=lambda r: r["family"].lower())]
    return "\n".join(markdown_table(head, lines, left=range(len(head))))


def stem(row: Row) -> str:
    """The case's name without the way of attention."""
    return str(re.sub(r"/(fused|eager)$", "", row["case"]))


def condensed(wheres: Sequence[str]) -> str:
    """Tensor names with block numbers starred, each once."""
    names: dict[str, None] = {}
    for where in wheres:
        for name in re.split(r", | and \d+ more", where):
            if name:
                names[re.sub(r"(?<=\.)\d+(?=\.)", "*", name)] = None
    shown = [f"`{n}`" for n in list(names)[:5]]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def limits(row: Row) -> list[str]:
    """What cannot be pruned, what is flagged, what is refused, what fails, as list items."""
    items = []
    if "refused" in row:
        return [f"refused: {row['refused']}"]
    reasons: dict[str, list[tuple[str, int]]] = {}
    for where, size, reason in row["frozen"]:
        reasons.setdefault(reason, []).append((where, size))
    for reason, found in reasons.items():
        items.append(f"{reason}: {condensed([w for w, _ in found])}")
    for operator in row["unknown"]:
        items.append(f"operator without a rule, what it touches is frozen: `{operator}`")
    flags: dict[tuple[str, str], list[str]] = {}
    for name, kind, notes in row["inexact"]:
        flags.setdefault((kind, "; ".join(notes)), []).append(name)
    for (kind, notes), names in flags.items():
        items.append(f"**flagged as inexact**, {kind}: {notes} ({condensed(names)})")
    for kind, found in [*row["alone"].items(), ("all at once", row["all"])]:
        if "refused" in found:
            items.append(f"**refused**, {kind}: {found['refused']}")
    for title in ("batches", "backward", "copy", "compile", "onnx", "macs"):
        value = row.get(title)
        if isinstance(value, dict) and "error" in value:
            items.append(f"**{title}** fails: {value['error']}")
        elif isinstance(value, dict) and "dense too" in value:
            items.append(f"{title}: the dense model cannot be exported either: {value['dense too']}")
        elif value and isinstance(value, (str, list)):
            items.append(f"**{title}** fails: {value}")
    export = row.get("export") or {}
    if "error" in export:
        items.append(f"**export** fails: {export['error']}")
    elif export.get("batch") == "fixed":
        also = " (the dense model too)" if export["dense too"] else ""
        items.append(f"export with a fixed batch only{also}: {export['why']}")
    return items


def page(rows: Sequence[Row], versions: Mapping[str, str], digest: str) -> str:
    """The whole page."""
    listed, beyond = [r for r in rows if r["listed"]], [r for r in rows if not r["listed"]]

    def count(part: Sequence[Row]) -> tuple[int, int]:
        cells = [outcome(r, k) for r in part if "refused" not in r for k in [*r["alone"], "all"]]
        return sum(c == "ok" for c in cells), len(cells)

    refused = [r for r in rows if "refused" in r or any("refused" in v for v in [*r["alone"].values(), r["all"]])]
    exact, tried = count(listed)
    exact_b, tried_b = count(beyond)
    old = sum(r.get("digest") != digest for r in rows)
    head = HEAD.format(
        date=max((r["date"] for r in rows), default=""), versions=", ".join(f"{k} {v}" for k, v in versions.items()),
        exact=exact, tried=tried, listed=len(listed), exact_b=exact_b, tried_b=tried_b, beyond=len(beyond),
        refused=f"something is refused in {len(refused)} models" if refused else "nothing is refused",
    )  # fmt: skip
    parts = [head]
    if old:
        parts.append(f"{old} rows are from an earlier state of the sources.\n")
    parts += ["## Listed models\n", table(listed), "\n## Beyond the list\n", table(beyond)]
    parts.append(
        "\n## What cannot be pruned, and why\n\nBlock numbers are starred. Axes of size 1 and tensors that the forward "
        "pass does not use are left out.\n"
    )
    shown: dict[str, tuple[str, list[str]]] = {}
    for row in rows:
        items = limits(row)
        known = shown.get(stem(row))
        if known is None:
            shown[stem(row)] = (row["notes"], items)
        elif known[1] != items:
            shown[row["case"]] = (row["notes"], items)
    for name, (notes, items) in shown.items():
        parts.append(f"### {name}\n" + (f"\n{notes[:1].upper()}{notes[1:]}.\n" if notes else ""))
        parts.append("\n".join(f"- {item}" for item in items) + "\n")
    return "\n".join(parts)
