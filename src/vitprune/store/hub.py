"""Saved folders on the Hugging Face hub: fetched file by file, nothing but what `read` reads."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vitprune.errors import StoreError
from vitprune.store.read import FILES

PREFIX = "hub:"
REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def repo_of(name: str) -> tuple[str, str | None] | None:
    """(OWNER/NAME, revision or None) that `name` means on the hub, None where it means a folder here.

    "hub:OWNER/NAME[@REVISION]" always does; "OWNER/NAME" does where there is neither such a folder nor a folder OWNER.

    Raises StoreError for "hub:" with anything else.
    """
    said = name.startswith(PREFIX)
    repo, at, revision = name.removeprefix(PREFIX).partition("@")
    fits = REPO.fullmatch(repo) is not None and bool(revision) == bool(at)
    if said and not fits:
        raise StoreError(f"a model on the hub is hub:OWNER/NAME or hub:OWNER/NAME@REVISION, but got {name!r}")
    if not said and (not fits or Path(name).exists() or Path(repo.partition("/")[0]).exists()):
        return None
    return repo, revision or None


def fetch(repo: str, revision: str | None = None) -> Path:
    """A local folder with the files that vitprune reads of a repository on the hub; those in the cache are used again.

    Safetensors, JSON and Markdown alone are fetched, by name: no pickle and no code comes along.

    Raises StoreError when the hub cannot be reached, or has no such repository.
    """
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(FILES)}
    try:
        return Path(snapshot_download(repo, **wanted))
    except Exception as error:  # of the network, of the hub, of its client's own checks
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        at = f" at {revision}" if revision else ""
        raise StoreError(
            f"{repo} is no folder here, and could not be had from the Hugging Face hub{at}: {reason}; "
            "load takes a folder that vitprune saved, or hub:OWNER/NAME of one that was uploaded"
        ) from error


def local(name: Path | str) -> Path:
    """The folder that `name` means, fetched from the hub if it is there. Raises StoreError when it cannot be had."""
    found = repo_of(name) if isinstance(name, str) else None
    return Path(name) if found is None else fetch(*found)
