"""Errors as one line and an exit code; JSON and progress on separate streams."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from vitprune.errors import VitpruneError

INTERRUPTED = 130  # what shells give for Ctrl-C
TERMINATED = 143


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with the user's errors printed as one line on standard error, and Ctrl-C as exit code 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except VitpruneError as error:
            print("error: " + " ".join(str(error).split()), file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            print("interrupted; the same command goes on where it stopped", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: no second complaint
            raise SystemExit(1) from None

    return run


def catch_termination() -> None:
    """A polite kill (SIGTERM) leaves by an exception, so that temporary folders are removed."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, leave)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1))
