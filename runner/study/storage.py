"""Where studies are kept: a journal file by default, or a database that Optuna can use."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import optuna
import psutil
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import SQLAlchemyError

from runner.utils.errors import UserError
from runner.utils.redaction import redact

JOURNAL = "studies.journal"
"""The default storage's name, in the folder of the records."""
BEGIN = b'{"op_code":'
"""What every journal begins with."""
HEARTBEAT = 15
"""Seconds between two signs of life of a running trial in a database."""
GRACE = 120
"""Seconds without one, after which it counts as dead."""
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "ceph", "beegfs", "fuse.sshfs"}
)


def default(root: Path) -> str:
    """The journal in the folder of the records."""
    return str(root / JOURNAL)


def is_file(storage: str) -> bool:
    """Whether it is a journal file rather than an address."""
    return "://" not in storage


def is_local(storage: str) -> bool:
    """Whether only processes of this host can share it."""
    return is_file(storage) or storage.startswith("sqlite")


def on_network(path: Path) -> str | None:
    """The kind of network file system that holds `path`; None on a local one."""
    path = path.absolute()
    holding = [each for each in psutil.disk_partitions(all=True) if path.is_relative_to(each.mountpoint)]
    kind = max(holding, key=lambda each: len(each.mountpoint)).fstype if holding else ""
    return kind if kind in NETWORK_FILE_SYSTEMS else None


def hidden(storage: str) -> str:
    """An address without its password."""
    return redact(storage)


def connect(storage: str, on_stale: Callable[..., None] | None = None) -> BaseStorage:
    """The storage at a path or address; makes a journal file where there is none.

    `on_stale` is called with (study, trial) when a database's trial gave no sign of life any more.

    Raises `UserError` where it cannot be reached, its driver is not installed, or it is a file on a network.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed to be used")
    if is_file(storage):
        return _journal(Path(storage).expanduser())
    return _database(storage, on_stale)


def _journal(path: Path) -> BaseStorage:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind := on_network(path.parent):
        raise UserError(
            f"{path} lies on a network file system ({kind}), where a journal file is not safe; give --storage a"
            " PostgreSQL address, or a path on a local disk."
        )
    if path.is_dir():
        raise UserError(f"{path} is a folder; give --storage the path of a file in it.")
    if path.exists() and (begin := path.open("rb").read(len(BEGIN))) and not BEGIN.startswith(begin):
        raise UserError(f"{path} is not a journal of studies; give --storage another path.")
    lock: Any = KernelLock(path)  # Optuna does not export the class that it says it wants
    try:
        lock.acquire()
        try:
            _mend(path)
        finally:
            lock.release()
        return JournalStorage(JournalFileBackend(str(path), lock_obj=lock))
    except OSError:
        raise
    except Exception as error:  # Optuna raises nearly anything on lines that it did not write
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is not a journal of studies, or is damaged ({reason}); give --storage another path."
        ) from None


def _mend(path: Path) -> None:
    """Cut off a last line that a dying process left half written: the next one would be lost with it.

    Raises ValueError where the last line is whole, but not of a journal.
    """
    with path.open("ab+") as file:
        end = file.tell()
        back = min(end, 1 << 20)
        file.seek(end - back)
        tail = file.read()
        if tail and not tail.endswith(b"\n"):
            file.truncate(end - len(tail) + tail.rfind(b"\n") + 1)
            tail = tail[: tail.rfind(b"\n") + 1]
    _, newline, last = tail[:-1].rpartition(b"\n")
    if newline:  # of a last line that is none, Optuna would tell at the next one only
        json.loads(last)


class KernelLock:
    """The lock that Optuna's journal takes to write. The kernel lets it go when its holder is killed."""

    def __init__(self, path: Path) -> None:
        self._lock = FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        """Wait until this process holds it."""
        self._lock.acquire()
        return True

    def release(self) -> None:
        """Let the next one have it."""
        self._lock.release()


def _database(storage: str, on_stale: Callable[..., None] | None) -> BaseStorage:
    address = _with_driver(storage)
    options: dict[str, Any] = {} if address.startswith("sqlite") else {"pool_pre_ping": True}
    if address.startswith("sqlite"):
        path = Path(address.removeprefix("sqlite:///"))
        if kind := on_network(path):
            raise UserError(f"{path} lies on a network file system ({kind}); several hosts need PostgreSQL.")
        options["connect_args"] = {"timeout": 60}
        lock: Any = FileLock(f"{path}.lock")  # its tables must not be made by two at once
    else:
        lock = nullcontext()
    for attempt in range(3):
        try:
            with lock:
                return RDBStorage(
                    address,
                    engine_kwargs=options,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=on_stale,
                )
        except ImportError as error:
            raise UserError(
                f"The storage {hidden(storage)} needs a driver that is not installed ({redact(str(error))});"
                " for PostgreSQL: pip install 'vgg-runner[postgresql]'."
            ) from None
        except SQLAlchemyError as error:
            # Two processes that make the tables of one database at once: the later one finds them made.
            if attempt < 2 and ("already exists" in str(error) or "duplicate key" in str(error)):
                continue
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            raise UserError(
                f"The storage {hidden(storage)} cannot be reached ({redact(reason)}); start it, or mend --storage."
            ) from None
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"The storage {hidden(storage)} cannot be used ({redact(str(error))}); mend --storage."
            ) from None
    raise UserError(f"The tables of {hidden(storage)} cannot be made; another process keeps making them.")


def _with_driver(storage: str) -> str:
    """PostgreSQL's address, with psycopg's newer driver where only that is installed."""
    scheme, _, rest = storage.partition("://")
    if scheme in ("postgresql", "postgres"):
        newer = importlib.util.find_spec("psycopg") is not None
        return f"postgresql+{'psycopg' if newer else 'psycopg2'}://{rest}"
    return storage
