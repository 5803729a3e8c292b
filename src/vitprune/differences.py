"""What differs between the settings that a stopped run left and those of the run that would go on from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Names of settings that differ, those within a group as "group.name"; both are JSON values.

    A setting that only one of them has differs unless it is off (false, 0, empty, none): it came with another version.
    """
    names: list[str] = []
    for key in sorted({*found, *wanted}):
        a, b = found.get(key), wanted.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += [f"{key}.{name}" for name in differing(a, b)]
        elif a != b if key in found and key in wanted else bool(a or b):
            names.append(key)
    return names
