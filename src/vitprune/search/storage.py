"""Where the trials of a study are kept, so that many workers can share it."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from vitprune.progress import Progress
from vitprune.search.errors import SearchError

FILE = "study.db"
FORMS = "sqlite:///PATH (one machine), journal:PATH (a network file system) or postgresql://USER@HOST/DATABASE"
DRIVERS = ("psycopg2", "psycopg")  # of PostgreSQL
TIMEOUT_S = 60  # for the lock of a SQLite file
CONNECT_S = 10  # to a server
ATTEMPTS = 6  # at making tables that another worker is making too
FAILURES = (SQLAlchemyError, optuna.exceptions.StorageInternalError, OSError)

T = TypeVar("T")


def open_storage(text: str | None, folder: Path) -> BaseStorage:
    """The storage that `text` names, one of FORMS; None: a SQLite file in `folder`.

    Raises SearchError for another text, a driver that is not installed, and a storage that cannot be used; passwords
    are never shown.
    """
    given = f"sqlite:///{folder.absolute() / FILE}" if text is None else text
    with quiet():
        if given.startswith("journal:"):
            return _journal(given.removeprefix("journal:"))
        return _database(given)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Optuna's warnings of what is experimental, or will be in a later version."""
    with warnings.catch_warnings():
        for category in (optuna.exceptions.ExperimentalWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        yield


def shown(text: str | None) -> str:
    """The text without its password, to be printed."""
    if text is None:
        return FILE
    text = re.sub(r"://([^/@:]*):.*@", r"://\1:***@", text)
    return re.sub(r"(?i)(password|passfile|sslpassword)=[^&]*", r"\1=***", text)


class Reach:
    """Calls a storage again while it cannot be reached, for `patience` seconds: servers are restarted, disks hang."""

    def __init__(self, place: str, said: Progress, patience: float = 120.0) -> None:
        """place: to be printed."""
        self.place, self.said, self.patience = place, said, patience

    def __call__(self, action: Callable[[], T]) -> T:
        """What the action returns. Raises SearchError when the storage could not be reached for too long."""
        began, told, pause = time.monotonic(), False, 0.2
        while True:
            try:
                return action()
            except FAILURES as error:
                if time.monotonic() - began > self.patience:
                    raise SearchError(
                        f"the study's storage {self.place} cannot be reached any more ({_why(error, self.place)}); "
                        "what was finished is kept there: the same command goes on"
                    ) from error
                if not told and time.monotonic() - began > 2:
                    self.said.line(f"the study's storage {self.place} does not answer; trying again")
                    told = True
                time.sleep(pause)
                pause = min(2 * pause, 10.0)


def _journal(path: str) -> BaseStorage:
    if not path:
        raise SearchError(f"a journal storage needs a file: journal:PATH; the forms are {FORMS}")
    try:
        return JournalStorage(JournalFileBackend(path))
    except OSError as error:
        raise SearchError(
            f"cannot use the storage journal:{path} ({error.strerror or error}): it must be a file, or none yet, in a "
            "folder that is there and is writable"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise SearchError(f"{path} is no journal of studies; choose another file (--storage journal:PATH)") from error


def _database(text: str) -> BaseStorage:
    place = shown(text)
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:
        raise SearchError(f"the storage of a study must be {FORMS}, but got {place!r}") from error
    kind = "postgresql" if url.drivername == "postgres" else url.get_backend_name()
    if kind not in ("sqlite", "postgresql") or (kind == "sqlite" and url.database in (None, "", ":memory:")):
        raise SearchError(f"the storage of a study must be {FORMS}, but got {place!r}")
    options: dict[str, Any] = {"connect_args": {"timeout": TIMEOUT_S}}
    if kind == "postgresql":
        options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_S}}
        if "@" in (url.host or ""):
            raise SearchError(f"the storage {place} has an @ in its password, which must be written %40 there")
        if url.drivername in (kind, "postgres"):  # which driver that means depends on SQLAlchemy's version
            there = [name for name in DRIVERS if find_spec(name)]
            url = url.set(drivername=f"{kind}+{(there or DRIVERS)[0]}")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            storage = RDBStorage(url.render_as_string(hide_password=False), engine_kwargs=options)
            if kind == "sqlite":
                _whole_transactions(storage.engine)
            return storage
        except ImportError as error:
            raise SearchError(
                f"the storage {place} needs a driver that is not installed; install it by "
                "pip install 'vitprune[postgresql]', or use another --storage"
            ) from error
        except ArgumentError as error:
            raise SearchError(
                f"the storage of a study must be {FORMS}, but got {place!r} ({_why(error, text)})"
            ) from error
        except RuntimeError as error:
            raise SearchError(
                f"the storage {place} was made by another version of Optuna than {optuna.__version__}; choose another "
                "--storage, or upgrade it (optuna storage upgrade)"
            ) from error
        except FAILURES as error:
            if attempt == ATTEMPTS or not _made_twice(error):
                raise SearchError(f"cannot use the storage {place}: {_why(error, text)}; {_remedy(kind)}") from error
            time.sleep(0.2 * attempt)
    raise AssertionError


def _made_twice(error: BaseException) -> bool:
    """Whether another worker made the same table at the same moment."""
    return bool(re.search("already exists|duplicate key|UNIQUE constraint", str(error)))


def _remedy(kind: str) -> str:
    if kind == "sqlite":
        return "it must be a SQLite file, or none yet, in a folder that is there and is writable"
    return "the server must be running, reachable from here, and have that database and user"


def _why(error: BaseException, text: str) -> str:
    """The first line of what the library says, without SQL and passwords."""
    cause: BaseException = error
    while isinstance(cause, optuna.exceptions.StorageInternalError) and cause.__cause__ is not None:
        cause = cause.__cause__
    said = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
    secret = re.search(r"://[^/@:]*:(.+)@", text)
    return re.sub(rf"(?<!\w){re.escape(secret.group(1))}(?!\w)", "***", said) if secret else said


def _whole_transactions(engine: Engine) -> None:
    """Lets every transaction take SQLite's lock when it begins.

    Else two workers can both read that a trial waits, and both write that it is theirs: SQLite knows no row locks.
    """

    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver begins no transaction by itself
        for setting in ("journal_mode=WAL", "synchronous=NORMAL"):  # a commit waits for no disk
            connection.execute(f"PRAGMA {setting}")

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()
    event.listen(engine, "connect", connected)
    event.listen(engine, "begin", begun)
