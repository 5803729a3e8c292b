"""Locks among processes that vanish with the process that holds them, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vitprune.errors import StoreError


@contextmanager
def locked(path: Path, *, wait: bool = True, shared: bool = False) -> Iterator[bool]:
    """Whether this process holds the lock of the file at `path`, which is made and stays; it does if it may `wait`.

    shared: together with others that ask for it so.

    Raises StoreError when the file cannot be made, or where the file system has no locks.
    """
    import fcntl  # not on every system

    kind = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    held = False
    try:
        try:
            fcntl.flock(handle, kind)
            held = True
        except BlockingIOError:
            pass
        except OSError as error:
            raise StoreError(
                f"{path} cannot be locked: {error.strerror or error}; choose a folder on a file system with locks"
            ) from error
        yield held
    finally:
        if held:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not do while a process forked from this one lives
        os.close(handle)
