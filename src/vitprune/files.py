"""Folders and files that are there entirely or not at all."""

from __future__ import annotations

import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from vitprune.errors import StoreError
from vitprune.exchange import exchange


def check_free(target: Path, *, force: bool, marker: str) -> None:
    """Pass when a folder may be written at `target`: it is not there, is empty, or `force` may replace it.

    Only a folder that holds the file `marker` is ever replaced, so that a slip of the keyboard costs no home folder.

    Raises StoreError otherwise.
    """
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StoreError(f"output {target} must be a folder, but is a {'link' if target.is_symlink() else 'file'}")
    if not target.exists() or not any(target.iterdir()):
        return
    if not force:
        raise StoreError(f"output folder {target} is in use; choose another --out, or replace it with --force")
    if not (target / marker).is_file():
        raise StoreError(f"output folder {target} has no {marker}, so vitprune did not write it; it is not replaced")


@contextmanager
def new_folder(target: Path, *, force: bool = False, marker: str = "plan.json") -> Iterator[Path]:
    """A temporary folder beside `target` that takes its name when the block ends well.

    On any exception, Ctrl-C included, the temporary folder is removed and an old folder stays as it was. With `force`
    an old folder trades names with the new one, in one step where the system can, and is removed after. What a killed
    process of this machine left behind for the same target is removed too.

    Raises StoreError when the target is in use (see `check_free`) or cannot be written (disk full, no permission).
    """
    target = target.absolute()
    check_free(target, force=force, marker=marker)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _tidy(target)
        work = Path(tempfile.mkdtemp(prefix=f"{_prefix(target)}{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        yield work
        _share(work)
        _sync(work)
        _replace(work, target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}; nothing was kept") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object. Raises StoreError, with the remedy, when the file holds none or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise StoreError(f"{path} cannot be read: {error}; {remedy}") from error
    return value


def write_text(path: Path, text: str) -> None:
    """`path` holds `text`, entirely or as it was before. Raises StoreError when it cannot be written."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """`path` holds `content`, entirely or as it was before. Raises StoreError when it cannot be written."""
    part = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise StoreError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            part.unlink()


def _replace(work: Path, target: Path) -> None:
    old: Path | None = None
    if target.exists() and any(target.iterdir()):
        if exchange(work, target):
            with suppress(OSError):
                _sync_path(target.parent)
            return  # the old one goes as the temporary one
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
        try:
            os.rename(target, old)  # over the empty folder just made
        except BaseException:
            with suppress(OSError):
                old.rmdir()
            raise
    try:
        os.rename(work, target)
    except BaseException:
        if old is not None:
            os.rename(old, target)
        raise
    with suppress(OSError):
        _sync_path(target.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _prefix(target: Path) -> str:
    """Of the names of temporary folders that this machine makes."""
    return f".{target.name}.partial-{socket.gethostname()}-"


def _tidy(target: Path) -> None:
    """Removes temporary folders whose process is gone."""
    prefix, processes = _prefix(target), Path("/proc")
    if not (processes / str(os.getpid())).exists():
        return  # another system
    for left in target.parent.iterdir():
        pid = left.name.removeprefix(prefix).partition("-")[0]
        if left.name.startswith(prefix) and pid.isdecimal() and not (processes / pid).exists():
            shutil.rmtree(left, ignore_errors=True)


def _share(folder: Path) -> None:
    """Usual permissions: temporary folders and safetensors files are made for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~mask)


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
