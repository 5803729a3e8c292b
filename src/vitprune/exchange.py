"""Two folders trade names in one step of the file system: there is no moment at which one of them is missing."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of Linux
UNABLE = {errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.ENOTSUP}


def exchange(one: Path, other: Path) -> bool:
    """Whether both, on one file system, have now each other's name; False where the system cannot, nothing changed.

    Raises OSError when it could, but did not. Source: renameat2(2) of Linux, which C libraries offer since 2018.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in UNABLE:
        return False
    raise OSError(number, os.strerror(number), str(one))
