"""Trackers of a training run: those that accelerate knows, checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from vitprune.recover.settings import TrainError


def check_trackers(names: Sequence[str], log_dir: Path | None) -> None:
    """Raises TrainError for a name that accelerate does not know, whose package is missing, or that needs a folder."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    classes = {str(name): made for name, made in LOGGER_TYPE_TO_CLASS.items()}
    own = {name for name, made in classes.items() if not made.__module__.startswith("accelerate.")}
    there = {str(name) for name in get_available_trackers()} | own
    for name in names:
        if name not in classes:
            near = get_close_matches(name, classes, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise TrainError(f"a tracker must be one of {', '.join(sorted(classes))}, but got {name!r}{hint}")
        if name not in there:
            package = "vitprune[tensorboard]" if name == "tensorboard" else name.replace("_", "-")
            raise TrainError(f"tracker {name} needs a package that is not installed: pip install '{package}'")
        if classes[name].requires_logging_directory and log_dir is None:
            raise TrainError(f"tracker {name} writes files and needs a folder for them (log_dir)")
