"""Storages of studies: a journal file by default, or a database that Optuna supports."""

from __future__ import annotations

import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from runner.study.database import DatabaseStorage, is_postgresql, with_driver
from runner.study.database_lock import DatabaseLock
from runner.study.outages import Outage, reason_of
from runner.utils.errors import UserError
from runner.utils.file_systems import network_file_system, sqlite_path
from runner.utils.hashing import digest
from runner.utils.redaction import redact
from runner.utils.text import one_line

JOURNAL = "studies.journal"
"""Name of the default storage, in the folder of the tracking store."""
JOURNAL_START = b'{"op_code":'
"""The first bytes of every journal."""
HEARTBEAT_INTERVAL = 15
"""Seconds between two heartbeats of a running trial in a database."""
HEARTBEAT_GRACE = 120
"""Seconds without a heartbeat after which a trial counts as dead."""
STARTING = "the database system is"
"""Text with which PostgreSQL refuses connections while it starts, stops or recovers."""
MAX_LINE = 1 << 20
"""Bytes at the end of a journal in which its last line is looked for."""


def default_storage(root: Path) -> str:
    """The journal file in the folder of the tracking store."""
    return str(root / JOURNAL)


def is_file(storage: str) -> bool:
    """Whether a storage is a journal file, not an address."""
    return "://" not in storage


def is_local(storage: str) -> bool:
    """Whether only processes of one host can share a storage."""
    return is_file(storage) or storage.startswith("sqlite")


def study_lock(root: Path, storage: str, study: str, outage: Outage | None = None) -> FileLock | DatabaseLock:
    """The lock that a process holds while it changes which trials a study is to run.

    In PostgreSQL it is of all hosts, else of the processes of this host with the same root.

    Args:
        root: Folder of the tracking store, which holds the lock of a host.
        storage: Path or address of the study's storage.
        study: Name of the study.
        outage: Waits while the database is away.
    """
    if is_postgresql(storage):
        return DatabaseLock(with_driver(storage), study, outage or Outage(storage))
    return FileLock(root / f".study-{digest(storage, study)[:12]}.lock")


def connect(storage: str, outage: Outage | None = None, worked_before: bool = False) -> BaseStorage:
    """The storage at a path or address; a journal file is created if there is none.

    Args:
        storage: Path or address.
        outage: Waits for a database server that is away later, or starts now.
        worked_before: The address is known to be right: wait for the server also if nothing answers now.

    Raises `UserError` if it cannot be reached, its driver is not installed, or it is a file on a network file system.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    if is_file(storage):
        return _journal(Path(storage).expanduser())
    return _database(storage, outage or Outage(storage), worked_before)


def _journal(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind := network_file_system(path.parent):
        raise UserError(
            f"{path} lies on a network file system ({kind}), where a journal file is not safe; set --storage to"
            " a PostgreSQL address or a path on a local disk."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; set --storage to a file in it.")
    start = path.read_bytes()[: len(JOURNAL_START)] if path.exists() else b""
    if not JOURNAL_START.startswith(start):
        raise UserError(f"{path} is not a journal of studies; choose another --storage.")
    # The kernel releases this lock when its holder is killed. Optuna needs no more of a lock than acquire and release.
    lock: Any = FileLock(f"{path}.lock")
    try:
        with lock:
            _drop_partial_line(path)
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError:
        raise
    except Exception as error:  # Optuna raises all kinds of errors on lines that it did not write
        reason = one_line(str(error), 200) or type(error).__name__
        what = f"not a journal of studies, or is damaged ({reason})"
        raise UserError(f"{path} is {what}; choose another --storage.") from None


def _drop_partial_line(path: Path) -> None:
    """Cut off a last line that a dying process did not complete: the next line would be lost with it.

    Raises ValueError if the last line is complete but not JSON.
    """
    with path.open("ab+") as file:
        end = file.tell()
        file.seek(max(0, end - MAX_LINE))
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
            tail = tail[: tail.rfind(b"\n") + 1]
    _, newline, last = tail[:-1].rpartition(b"\n")
    if newline:  # Optuna would complain about a damaged last line only when another one follows
        json.loads(last)


def _database(storage: str, outage: Outage, worked_before: bool, attempts: int = 3) -> BaseStorage:
    named = f"The storage {redact(storage)}"
    try:
        if storage.startswith("sqlite"):
            return _sqlite(storage)
        open_database = partial(
            DatabaseStorage, with_driver(storage), outage, HEARTBEAT_INTERVAL, HEARTBEAT_GRACE
        )
        if worked_before:
            return outage.retry(open_database)
        try:
            return open_database()
        except SQLAlchemyError as error:
            if STARTING not in reason_of(error):
                raise
            return outage.retry(open_database)
    except ImportError as error:
        raise UserError(
            f"{named} needs a driver that is not installed ({redact(str(error))}); for PostgreSQL:"
            " pip install 'vgg-runner[postgresql]'."
        ) from None
    except SQLAlchemyError as error:
        # Another process has created the tables in the meantime.
        if attempts > 1 and ("already exists" in str(error) or "duplicate key" in str(error)):
            return _database(storage, outage, worked_before, attempts - 1)
        raise UserError(
            f"{named} cannot be reached ({reason_of(error)}); start it, or correct --storage."
        ) from None
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{named} cannot be used ({redact(str(error))}); correct --storage.") from None


def _sqlite(address: str) -> BaseStorage:
    path = sqlite_path(address)
    if kind := network_file_system(path):
        raise UserError(f"{path} lies on a network file system ({kind}); several hosts need PostgreSQL.")
    with FileLock(f"{path}.lock"):  # two processes must not create its tables at once
        return RDBStorage(
            address,
            engine_kwargs={"connect_args": {"timeout": 60}},
            heartbeat_interval=HEARTBEAT_INTERVAL,
            grace_period=HEARTBEAT_GRACE,
        )
