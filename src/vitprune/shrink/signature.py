"""Arguments and results of a traced module call as Python expressions."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

from torch import nn

from vitprune.trace.marks import Call, Leaf


class CannotEmit(Exception):
    """The module's forward cannot be written anew from the trace."""


PLAIN = (bool, int, float, str, type(None))


class Signature:
    """The parameter list of a module's forward, and where each traced tensor stands in it."""

    def __init__(self, module: nn.Module, call: Call) -> None:
        self.leaves: dict[int, str] = {}
        self.guards: list[str] = []
        self.names: set[str] = set()  # of the parameters that have a name
        self.extra = ""  # what takes further keywords
        signature = inspect.signature(type(module).forward)
        bound = signature.bind(module, *call.args, **call.kwargs)
        bound.apply_defaults()
        parts: list[str] = []
        seen_star = False
        for i, (name, parameter) in enumerate(signature.parameters.items()):
            kind = parameter.kind
            if i == 0:
                parts.append("self")
                continue
            if kind is inspect.Parameter.VAR_POSITIONAL:
                parts.append(f"*{name}")
                seen_star = True
            elif kind is inspect.Parameter.VAR_KEYWORD:
                parts.append(f"**{name}")
                self.extra = name
            else:
                if kind is inspect.Parameter.KEYWORD_ONLY and not seen_star:
                    parts.append("*")
                    seen_star = True
                self.names.add(name)
                default = parameter.default
                if default is inspect.Parameter.empty:
                    parts.append(name)
                else:
                    parts.append(f"{name}={default!r}" if isinstance(default, PLAIN) else f"{name}=None")
            self._walk(name, bound.arguments.get(name))
        self.parameters = ", ".join(parts)

    def _walk(self, expression: str, value: Any) -> None:
        if isinstance(value, Leaf):
            self.leaves[value.number] = expression
        elif isinstance(value, Mapping):
            for key, item in value.items():
                self._walk(f"{expression}[{key!r}]", item)
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                self._walk(f"{expression}[{i}]", item)
        elif value is None and expression.isidentifier():
            self.guards.append(expression)


def attribute_path(path: str) -> str:
    """'blocks.0.attn' as an expression on self: "getattr(self.blocks, '0').attn"."""
    expression = "self"
    for part in path.split("."):
        plain = part.isidentifier() and not iskeyword(part)
        expression = f"{expression}.{part}" if plain else f"getattr({expression}, {part!r})"
    return expression


def construct(value: Any, leaves: Mapping[int, str], constants: dict[str, Any]) -> str:
    """An expression that builds `value`, its leaves replaced by `leaves`.

    Raises CannotEmit for objects that have no plain form.
    """
    if isinstance(value, Leaf):
        return leaves[value.number]
    if isinstance(value, PLAIN):
        return repr(value)
    if type(value) is tuple:
        inner = ", ".join(construct(v, leaves, constants) for v in value)
        return f"({inner},)" if value else "()"
    if type(value) is list:
        return "[" + ", ".join(construct(v, leaves, constants) for v in value) + "]"
    if type(value) is dict:
        return "{" + ", ".join(f"{k!r}: {construct(v, leaves, constants)}" for k, v in value.items()) + "}"
    if isinstance(value, Mapping) and hasattr(value, "__dataclass_fields__"):
        name = f"_type{len(constants)}"
        constants[name] = type(value)
        fields = ", ".join(f"{k}={construct(v, leaves, constants)}" for k, v in value.items())
        return f"{name}({fields})"
    raise CannotEmit(f"a {type(value).__name__} among its arguments or results")


def destructure(value: Any, expression: str, leaves: dict[int, str]) -> None:
    """Fill `leaves` with the expression that picks each leaf out of a result called `expression`."""
    if isinstance(value, Leaf):
        leaves[value.number] = expression
    elif isinstance(value, Mapping):
        for k, v in value.items():
            destructure(v, f"{expression}[{k!r}]", leaves)
    elif isinstance(value, (list, tuple)):
        for i, v in enumerate(value):
            destructure(v, f"{expression}[{i}]", leaves)
