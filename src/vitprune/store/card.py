"""The README.md of a saved folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vitprune.markdown import markdown_table
from vitprune.plan import Plan
from vitprune.preprocessing import Preprocessing

FRONT = ("---", "library_name: vitprune", "tags:", "- vision-transformer", "- structured-pruning", "---")


def model_card(
    name: str,
    plan: Plan,
    preprocessing: Preprocessing,
    metrics: Mapping[str, Any],
    classes: Sequence[str],
    *,
    place: str = "",
    front: Sequence[str] = FRONT,
    more: Sequence[str] = (),
) -> str:
    """Markdown with front matter: what the model is, how it was pruned, what it scores, how to load it.

    place: what `vitprune.load` takes, else the name. front: lines of the front matter; more: lines before the versions.
    """
    base = f"{plan.source.get('kind', '?')}:{plan.source.get('name', '?')}"
    done = "structurally pruned" if plan.pruned() else "saved"
    lines = [*front, "", f"# {name}", "", f"`{base}`, {done} with vitprune."]
    lines += ["", "```python", "import vitprune", ""]
    lines += [f'model = vitprune.load("{place or name}")  # the library\'s own module, in eval mode', "```", ""]
    lines += ["## How it was pruned", ""]
    asked = ", ".join(f"{k}={v}" for k, v in plan.asked.items()) or "nothing in particular"
    lines += [f"- asked: {asked}", f"- score: {plan.method or 'not recorded'}"]
    lines += [f"- {k}: {_value(v)}" for k, v in plan.settings.items() if k not in ("not_pruned", "frozen", "notes")]
    lines += [f"- note: {n}" for n in plan.settings.get("notes", [])]
    costs = [[k, f"{v['dense']:,}", f"{v['value']:,}", f"{v['ratio']:.4f}"] for k, v in plan.obtained.items()]
    lines += ["", *markdown_table(("", "dense", "pruned", "ratio"), costs, left={0})]
    rows = metrics.get("rows", [])
    if rows:
        lines += ["", "## Measured", "", *_table(rows)]
    size = "x".join(map(str, preprocessing.size))
    lines += ["", "## Input", "", f"- {preprocessing.channels} channel(s), {size} pixels (height x width)"]
    lines += [f"- mean {list(preprocessing.mean)}, std {list(preprocessing.std)}, {preprocessing.interpolation}"]
    if classes:
        shown = ", ".join(classes[:20]) + (f", ... ({len(classes)} in all)" if len(classes) > 20 else "")
        lines.append(f"- classes: {shown}")
    lines += ["", *more] if more else []
    lines += ["", "## Versions", "", *(f"- {k} {v}" for k, v in plan.versions.items()), ""]
    return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_value(row.get(c, "")) for c in columns] for row in rows]
    return markdown_table(columns, cells, left=range(len(columns)))


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
