"""Reading a plan back: every value is checked before it is used, since a plan may come from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from vitprune.plan import KIND_NAMES, PLAN_VERSION, GroupPlan, Plan, PlanError, kept_problem

MAX_TEXT = 64 * 2**20  # characters
MAX_GROUPS = 100_000
MAX_LANES = 65_536
MAX_SIZE = 4_194_304  # units per lane
MAX_UNITS = 16_777_216  # over all groups and lanes
MAX_NAME = 1_000
_MAPPINGS = ("asked", "obtained", "settings", "source", "versions")
_FIELDS = {"version", "method", "fingerprint", "groups", *_MAPPINGS}


def read_plan(text: str) -> Plan:
    """The plan in `text`.

    Raises PlanError, saying what is wrong and where, for malformed JSON, another version, unknown or missing fields,
    wrong types, sizes beyond the bounds above, and units that are not ascending, unique and in range.
    """
    if len(text) > MAX_TEXT:
        raise PlanError(f"plan: at most {MAX_TEXT} characters are read, but got {len(text)}")
    try:
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
    except RecursionError as error:
        raise PlanError("plan: nested too deeply") from error
    except PlanError:
        raise
    except ValueError as error:
        raise PlanError(f"plan: not valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise PlanError(f"plan: must be a JSON object, but got {type(data).__name__}")
    version = data.get("version")
    if type(version) is not int or version != PLAN_VERSION:
        raise PlanError(
            f"plan: version must be {PLAN_VERSION}, but got {_show(version)}; use the vitprune that wrote it"
        )
    _fields(data, _FIELDS, "plan")
    for name in _MAPPINGS:
        if not isinstance(data[name], dict):
            raise PlanError(f"plan: {name} must be an object, but got {_show(data[name])}")
    for name, value in data["versions"].items():
        _string(value, f"plan: versions[{name!r}]")
    return Plan(
        groups=_groups(data["groups"]),
        fingerprint=_string(data["fingerprint"], "plan: fingerprint"),
        method=_string(data["method"], "plan: method"),
        version=version,
        **{name: data[name] for name in _MAPPINGS},
    )


def _groups(data: Any) -> dict[str, GroupPlan]:
    if not isinstance(data, dict):
        raise PlanError(f"plan: groups must be an object, but got {_show(data)}")
    if len(data) > MAX_GROUPS:
        raise PlanError(f"plan: at most {MAX_GROUPS} groups are read, but got {len(data)}")
    groups: dict[str, GroupPlan] = {}
    units = 0
    for name, entry in data.items():
        where = f"plan: group {name[:80]!r}"
        if not name or len(name) > MAX_NAME:
            raise PlanError(f"{where}: a name must have 1 to {MAX_NAME} characters")
        if not isinstance(entry, dict):
            raise PlanError(f"{where} must be an object, but got {_show(entry)}")
        _fields(entry, {"kind", "size", "lanes", "kept"}, where)
        if entry["kind"] not in KIND_NAMES:
            raise PlanError(f"{where}: kind must be one of {', '.join(KIND_NAMES)}, but got {_show(entry['kind'])}")
        size = _count(entry["size"], MAX_SIZE, f"{where}: size")
        lanes = _count(entry["lanes"], MAX_LANES, f"{where}: lanes")
        units += size * lanes
        if units > MAX_UNITS:
            raise PlanError(f"{where}: more than {MAX_UNITS} units in all")
        group = GroupPlan(entry["kind"], size, lanes, _kept(entry["kept"], where))
        problem = kept_problem(group)
        if problem:
            raise PlanError(f"{where}: {problem}")
        groups[name] = group
    return groups


def _kept(data: Any, where: str) -> tuple[tuple[int, ...], ...]:
    if not isinstance(data, list):
        raise PlanError(f"{where}: kept must be a list of lists, but got {_show(data)}")
    for lane, units in enumerate(data):
        if not isinstance(units, list):
            raise PlanError(f"{where}: kept[{lane}] must be a list, but got {_show(units)}")
        for unit in units:
            if type(unit) is not int:  # bool is an int, and no unit
                raise PlanError(f"{where}: kept[{lane}] must hold integers, but holds {_show(unit)}")
    return tuple(tuple(units) for units in data)


def _count(value: Any, most: int, where: str) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise PlanError(f"{where} must be an integer in 1..{most}, but got {_show(value)}")
    return value


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise PlanError(f"{where} must be a string of at most {MAX_NAME} characters, but got {_show(value)}")
    return value


def _fields(data: Mapping[str, Any], wanted: set[str], where: str) -> None:
    missing, extra = sorted(wanted - data.keys()), sorted(data.keys() - wanted)
    if missing or extra:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {_show(extra)}"] * bool(extra)
        raise PlanError(f"{where} {' and '.join(said)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        names = [name for name, _ in pairs]
        raise PlanError(f"plan: name {next(n for n in names if names.count(n) > 1)[:80]!r} occurs twice in one object")
    return result


def _constant(name: str) -> Any:
    raise PlanError(f"plan: {name} is no JSON number")


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
