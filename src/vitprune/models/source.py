"""Where a model comes from, as text and as a value. Free of torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from vitprune.errors import ModelError

KINDS: dict[str, str] = {
    "timm": "timm:NAME[?checkpoint=PATH&img_size=98&...]",
    "hf": "hf:ID-or-FOLDER[?attn=eager]",
    "torchvision": "torchvision:NAME[?checkpoint=PATH]",
    "module": "module:package.mod:factory[?width=96]",
    "shipped": "shipped:fmnist-vit",
}
Option = str | int | float | bool | None | list[Any] | dict[str, Any]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's kind, name and options; JSON-able, and enough to build the same structure again."""

    kind: str  # a key of KINDS, or "folder": one that vitprune saved
    name: str  # a registry name, hub id, folder, or "package.mod:factory"
    options: Mapping[str, Option] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; `from_json` gives an equal value."""
        return {"kind": self.kind, "name": self.name, "options": dict(self.options)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ModelSource:
        """The value that `to_json` wrote. Raises ModelError when it is malformed."""
        kind, name, options = fields.get("kind"), fields.get("name"), fields.get("options", {})
        if kind not in (*KINDS, "folder") or not isinstance(name, str) or not isinstance(options, Mapping):
            raise ModelError(f"a model source needs kind, name and options, but got {dict(fields)!r}")
        return cls(str(kind), name, dict(options))

    def with_options(self, **options: Option) -> ModelSource:
        """The same source with some options set."""
        return ModelSource(self.kind, self.name, dict(self.options) | options)

    def without(self, *names: str) -> ModelSource:
        """The same source with some options removed."""
        return ModelSource(self.kind, self.name, {k: v for k, v in self.options.items() if k not in names})

    def __str__(self) -> str:
        head = self.name if self.kind == "folder" else f"{self.kind}:{self.name}"
        shown = {k: v for k, v in self.options.items() if not isinstance(v, dict)}  # a whole configuration is no text
        options = "&".join(f"{k}={_write(v)}" for k, v in shown.items())
        return f"{head}?{options}" if options else head


def parse(spec: str) -> ModelSource:
    """The source that a MODEL argument names. Raises ModelError when it has none of the known forms."""
    head, _, query = spec.partition("?")
    kind, colon, name = head.partition(":")
    if not (colon and kind in KINDS) and (Path(spec) / "plan.json").is_file():
        return ModelSource("folder", spec)
    if not colon or kind not in KINDS or not name:
        raise ModelError(
            f"MODEL must be one of {', '.join(KINDS.values())}, or a folder saved by vitprune "
            f"(hub:OWNER/NAME where it is on the hub), "
            f"but got {spec!r}{_advice(spec)}"
        )
    if kind == "module" and not all(part.strip() for part in name.partition(":")):
        raise ModelError(f"module:... needs a module and a callable, as in {KINDS['module']}, but got {spec!r}")
    options: dict[str, Option] = {}
    for pair in filter(None, query.split("&")):
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ModelError(f"options of MODEL are name=value joined by '&', but got {pair!r} in {spec!r}")
        options[unquote(key)] = _read(unquote(value))
    return ModelSource(kind, name, options)


def _read(text: str) -> Option:
    """A JSON value where the text is one (also True/False/None as Python writes them), else the text itself."""
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except ValueError:
        return text
    return text if isinstance(value, dict) else value


def _write(value: Option) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return quote(text, safe="/:.,[]-_~ ")


def _advice(spec: str) -> str:
    if Path(spec).is_dir():
        if (Path(spec) / "config.json").is_file():
            return f"; this folder looks like a transformers one: hf:{spec}"
        return "; this folder holds neither plan.json nor config.json"
    return f"; did you mean timm:{spec}?" if spec.isidentifier() else ""
