"""Run records whose folder was moved or copied.

MLflow stores the absolute place of every artifact, and a journal that of its database. When a folder of records is
opened at another place than it names, these paths are updated; all others stay. Does not import MLflow.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
from contextlib import closing, suppress
from dataclasses import asdict, replace
from multiprocessing.util import Finalize
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock

from runner.tracking.journal import Journal
from runner.utils.atomic_files import write_text
from runner.utils.errors import UserError
from runner.utils.file_systems import is_sqlite, sqlite_path, sqlite_uri
from runner.utils.paths import local_path

DATABASE = "mlflow.db"
ARTIFACTS = "artifacts"
"""The folder of all artifacts, one folder per experiment."""
LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)
"""The columns in which MLflow's database names places."""
SHOWN_NAME = 20
"""Characters of an experiment's name with which the name of its folder begins."""
BUSY_TIMEOUT = 30.0
"""Seconds that the change waits for other writers of the database."""


def adopt_records(root: Path) -> None:
    """Tell the records in a folder where it is now, if it was moved or copied since they were written.

    A folder that is moved, or seen under another path by a container, while a run writes to it keeps its old place:
    `check_place` says so.

    Raises `UserError` if the database cannot be changed, or is one file with that of another folder.
    """
    if not former_roots(root) or is_read_only(root) or _live_run(root):
        return
    database = root / DATABASE
    with FileLock(root / f".{DATABASE}.lock"):
        formers = former_roots(root)  # another process may have been faster
        for uri in formers:
            former = _path(uri)
            is_copy = former.is_dir()
            if is_copy and (former / DATABASE).exists() and (former / DATABASE).samefile(database):
                raise UserError(
                    f"{database} and {former / DATABASE} are one file with two names, so what is written to one changes"
                    f" the other; make it a file of its own: cp {database} {database}.new && mv {database}.new"
                    f" {database}"
                )
            _adopt_journals(root, former, is_copy)
        if formers:
            try:
                with closing(sqlite3.connect(database, timeout=BUSY_TIMEOUT)) as connection, connection:
                    _relocate(connection, formers, root)
            except sqlite3.Error as error:
                raise UserError(
                    f"{database} was moved or copied, and its paths cannot be updated ({error}); free some disk space,"
                    " or wait until no other process uses it."
                ) from None


def former_roots(root: Path) -> list[str]:
    """The addresses of the folders that the database takes its own folder for; none where it has the right one."""
    try:
        with closing(_open_to_read(root / DATABASE)) as connection:
            rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    except sqlite3.Error:  # there is no database, or whoever opens it says what is wrong with it
        return []
    places: dict[str, list[tuple[str, str]]] = {}
    for name, location in rows:
        start, found, folder = str(location).rpartition(f"/{ARTIFACTS}/")
        if found and start and "/" not in folder and _path(start) != root and local_path(start) is not None:
            places.setdefault(start, []).append((str(name), _path(location).name))
    return [uri for uri, folders in places.items() if _is_former(uri, folders, root)]


def _is_former(uri: str, folders: list[tuple[str, str]], root: Path) -> bool:
    """Whether experiments lie in a place because their database lay there, and not because somebody chose it."""
    former = _path(uri)
    if former.exists() and root.exists() and former.samefile(root):
        return False  # another path to the same folder, which works as well
    if any((root / ARTIFACTS / folder).is_dir() for _, folder in folders):
        return True
    if former.exists():
        return (former / DATABASE).exists()
    return any(folder[:SHOWN_NAME] == name.replace("/", "-")[:SHOWN_NAME] for name, folder in folders)


def check_place(root: Path) -> None:
    """Raises `UserError` if the records in a folder still name another place, because a run writes to them there."""
    if (formers := former_roots(root)) and not is_read_only(root) and (live := _live_run(root)):
        owner = live.owner
        raise UserError(
            f"The records in {root} are in use as {_path(formers[0])}, by run {owner.run_id[:8]} (process"
            f" {owner.pid} on {owner.host}): wait until it has ended (or for a minute, if they were just copied from"
            " there), or use the same path here."
        )


def is_read_only(root: Path) -> bool:
    """Whether the database in a folder exists and may not be written."""
    database = root / DATABASE
    return database.exists() and not (os.access(root, os.W_OK) and os.access(database, os.W_OK))


def readable_copy(root: Path) -> Path:
    """A temporary copy of a read-only database, which names the present place of its artifacts; removed at exit.

    SQLite cannot read a database with a write-ahead log in a folder where it may not write. Raises `UserError` if it
    cannot be copied.
    """
    folder = Path(tempfile.mkdtemp(prefix="runner-"))
    # Unlike atexit's, it is called in forked processes too, as in the one in which `predict` looks for its model.
    Finalize(None, shutil.rmtree, (folder,), {"ignore_errors": True}, exitpriority=0)
    database = folder / DATABASE
    try:
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copyfile(root / f"{DATABASE}{suffix}", folder / f"{DATABASE}{suffix}")
        with closing(sqlite3.connect(database)) as connection, connection:
            _relocate(connection, former_roots(root), root)
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{root / DATABASE} is read-only, and cannot be copied to read it ({error}); make its folder writable."
        ) from None
    return database


def _relocate(connection: sqlite3.Connection, formers: list[str], root: Path) -> None:
    """Replace the former folders by `root` at the start of all places, in one transaction."""
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.execute("BEGIN IMMEDIATE")
    for uri in formers:
        # MLflow writes both forms: its own default is a plain path.
        for old, new in ((f"{uri}/", f"{root.as_uri()}/"), (f"{_path(uri)}/", f"{root}/")):
            for table, column in LOCATIONS:
                if table in tables:
                    connection.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 (our own names)
                        f" WHERE substr({column}, 1, ?) = ?",
                        (new, len(old) + 1, len(old), old),
                    )


def _adopt_journals(root: Path, former: Path, is_copy: bool) -> None:
    """Let the journals of a former folder's database name that of this one; in a copy they have no living owner."""
    for journal in Journal.find_all(root / "journals"):
        uri = journal.owner.uri
        if not is_sqlite(uri) or sqlite_path(uri) != former / DATABASE:
            continue
        path = journal.folder / "owner.json"
        times = path.stat()
        if is_copy and journal.alive:  # its owner works on the original
            journal.release()
        owner = replace(journal.owner, uri=sqlite_uri(root / DATABASE))
        write_text(path, json.dumps(asdict(owner)), 0o600)
        os.utime(path, (times.st_atime, times.st_mtime))  # it counts as a heartbeat


def _live_run(root: Path) -> Journal | None:
    """A journal whose process works on it under a former path of `root`; None if no process does.

    Where the former folder is there too, this one is a copy, and the processes work on the original.
    """
    for journal in Journal.find_all(root / "journals"):
        if not is_sqlite(journal.owner.uri):
            continue
        place = sqlite_path(journal.owner.uri).parent
        if place != root and not place.is_dir() and journal.alive:
            return journal
    return None


def _open_to_read(database: Path) -> sqlite3.Connection:
    """A connection that does not create the database. Raises sqlite3.Error if there is none."""
    # Without write access a file beside it, which the write-ahead log needs, cannot be made.
    mode = "immutable=1" if is_read_only(database.parent) else "mode=ro"
    return sqlite3.connect(f"file:{quote(str(database))}?{mode}", uri=True, timeout=BUSY_TIMEOUT)


def _path(uri: str) -> Path:
    """The path of a file: address, or of a plain path."""
    path = local_path(uri)
    return Path(uri) if path is None else path
