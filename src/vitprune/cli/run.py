"""Errors as one line and an exit code; JSON and progress on separate streams."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from vitprune.errors import VitpruneError
from vitprune.processes import is_main, rank, world
from vitprune.shortage import memory_for

INTERRUPTED = 130  # what shells give for Ctrl-C
TERMINATED = 143
GRACE_S = 5.0
NAMED = 3  # of what failed
LESS = "give smaller batches (--batch-size) or fewer images; a run that was begun goes on where it stopped"


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """`command`, with the user's errors printed as one line on standard error, and Ctrl-C as exit code 130."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with memory_for(f"vitprune {command.__name__}", LESS):
                command(*args, **kwargs)
            _part()
        except VitpruneError as error:
            if not is_main():
                time.sleep(GRACE_S)  # where the main process met it too, the launcher ends this one meanwhile
            where = "" if is_main() else f" (process {rank()})"
            print(f"error{where}: " + " ".join(str(error).split()), file=sys.stderr, flush=True)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            if is_main():
                print("interrupted; the same command goes on where it stopped", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader is gone: no second complaint
            raise SystemExit(1) from None

    return run


def _part() -> None:
    """Takes leave of the other processes, if there are any."""
    if world() > 1 and "torch.distributed" in sys.modules:
        from torch import distributed

        if distributed.is_initialized():
            distributed.destroy_process_group()


def catch_termination() -> None:
    """A polite kill (SIGTERM) leaves by an exception, so that temporary folders are removed."""

    def leave(_signal: int, _frame: FrameType | None) -> None:
        raise SystemExit(TERMINATED)

    signal.signal(signal.SIGTERM, leave)


def command_line() -> str:
    """The line that started this process, as a shell takes it; a password in a URL is replaced by ***."""
    words = ["vitprune", *sys.argv[1:]]
    return shlex.join(re.sub(r"(://[^/@:\s]*:)[^@\s]*@", r"\1***@", word) for word in words)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=1))


def some_failed(what: str, names: Sequence[str], total: int, table: Path) -> str:
    """The error of a command of which some "cells" or "points" failed and the others are there."""
    told = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    return (
        f"{len(names)} of {total} {what} failed ({told}); what was wrong stands in {table}; "
        "the same command tries them again"
    )
