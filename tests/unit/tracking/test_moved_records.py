"""Folders of run records that were moved or copied: their database and journals learn their new place."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import pytest
from stores import dead_owner, end, metric

from runner.tracking import moved_records
from runner.tracking.journal import Journal, Owner
from runner.tracking.moved_records import adopt_records, check_place, former_roots, readable_copy
from runner.utils.errors import UserError
from runner.utils.file_systems import sqlite_uri

RUN = "0123456789abcdef"


def records(root: Path, name: str = "flowers", folder: str | None = None, place: Path | None = None) -> Path:
    """A folder of records with one experiment, which has one run and one artifact."""
    artifacts = (place or root) / "artifacts" / (folder or name)
    (artifacts / RUN / "artifacts").mkdir(parents=True)
    (artifacts / RUN / "artifacts" / "experiment.yaml").write_text("name: flowers\n")
    root.mkdir(exist_ok=True)
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE experiments (name TEXT, artifact_location TEXT)")
        database.execute("CREATE TABLE runs (artifact_uri TEXT)")
        database.execute("CREATE TABLE model_versions (source TEXT, storage_location TEXT)")
        database.execute("INSERT INTO experiments VALUES ('Default', '/elsewhere/mlruns/0')")
        database.execute("INSERT INTO experiments VALUES (?, ?)", (name, artifacts.as_uri()))
        database.execute("INSERT INTO runs VALUES (?)", (f"{artifacts.as_uri()}/{RUN}/artifacts",))
        database.execute("INSERT INTO model_versions VALUES (?, NULL)", (f"{artifacts.as_uri()}/models/m-1",))
    return root


def places(root: Path) -> list[str]:
    """All places that a database names, but that of the experiment Default."""
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        queries = (
            "SELECT artifact_location FROM experiments WHERE name != 'Default'",
            "SELECT artifact_uri FROM runs",
            "SELECT source FROM model_versions",
        )
        return [place for query in queries for (place,) in database.execute(query)]


def expected(root: Path, folder: str = "flowers") -> list[str]:
    artifacts = (root / "artifacts" / folder).as_uri()
    return [artifacts, f"{artifacts}/{RUN}/artifacts", f"{artifacts}/models/m-1"]


def add_journal(root: Path, owner: Owner | None = None) -> Journal:
    """The journal of an interrupted run, by default of a process that is dead."""
    journal = Journal.create(root / "journals", owner or dead_owner(sqlite_uri(root / "mlflow.db"), RUN))
    journal.append(metric("val/loss", 0.25))
    journal.append(end("KILLED"))
    return journal


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ["flowers", "red roses #1?", "fünf%20", "a/b", "x" * 230])
@pytest.mark.parametrize("place", ["new", "a b/what?#%20", "artifacts/artifacts"])
def test_moved_records_learn_their_place(tmp_path: Path, name: str, place: str) -> None:
    folder = name.replace("/", "-")[:200]
    old, new = records(tmp_path / "o l%d", name, folder), tmp_path / place
    new.parent.mkdir(parents=True, exist_ok=True)
    old.rename(new)
    adopt_records(new)
    assert places(new) == expected(new, folder)
    assert former_roots(new) == []
    assert not old.exists()


def test_records_that_stay_are_not_written(tmp_path: Path) -> None:
    root = records(tmp_path / "mlruns")
    before = (root / "mlflow.db").stat()
    adopt_records(root)
    assert (root / "mlflow.db").stat() == before
    assert not (root / ".mlflow.db.lock").exists()


def test_a_folder_without_records_stays_empty(tmp_path: Path) -> None:
    adopt_records(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_copy_names_its_own_files_and_the_original_is_not_touched(tmp_path: Path) -> None:
    old, new = records(tmp_path / "old"), tmp_path / "new"
    add_journal(old)
    before = content(old)
    shutil.copytree(old, new)
    adopt_records(new)
    assert places(new) == expected(new)
    (journal,) = Journal.find_all(new / "journals")
    assert journal.owner.uri == sqlite_uri(new / "mlflow.db")
    assert content(old) == before


def test_a_copy_of_a_copy_of_records_without_artifacts(tmp_path: Path) -> None:
    old = records(tmp_path / "old")
    shutil.rmtree(old / "artifacts")
    for place in ("copy", "copy of copy"):
        shutil.copytree(old, old := tmp_path / place)
        adopt_records(old)
        assert places(old) == expected(old)


def test_moved_records_without_artifacts(tmp_path: Path) -> None:
    old, new = records(tmp_path / "old"), tmp_path / "new"
    shutil.rmtree(old / "artifacts")
    old.rename(new)
    adopt_records(new)
    assert places(new) == expected(new)


@pytest.mark.parametrize("mounted", [True, False])
def test_a_place_that_somebody_chose_stays(tmp_path: Path, mounted: bool) -> None:
    disk = tmp_path / "disk"
    root = records(tmp_path / "mlruns", "flowers", "chosen", place=disk)
    if not mounted:
        disk.rename(tmp_path / "unplugged")
    root = root.rename(tmp_path / "moved")
    adopt_records(root)
    assert places(root) == expected(disk, "chosen")


def test_places_on_servers_stay(tmp_path: Path) -> None:
    root = records(tmp_path / "mlruns")
    with closing(sqlite3.connect(root / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET artifact_location = 's3://bucket/artifacts/flowers'")
    adopt_records(root)
    assert places(root)[0] == "s3://bucket/artifacts/flowers"


def test_another_path_to_the_same_folder_changes_nothing(tmp_path: Path) -> None:
    root = records(tmp_path / "mlruns")
    (tmp_path / "link").symlink_to(root)
    adopt_records(tmp_path / "link")
    assert places(root) == expected(root)


def test_a_journal_of_a_server_stays(tmp_path: Path) -> None:
    old, new = records(tmp_path / "old"), tmp_path / "new"
    add_journal(old, dead_owner("http://tracking.example", RUN))
    old.rename(new)
    adopt_records(new)
    (journal,) = Journal.find_all(new / "journals")
    assert journal.owner.uri == "http://tracking.example"


def test_a_run_that_writes_to_another_path_keeps_it(tmp_path: Path) -> None:
    """As where a container sees the folder under another path; here it was moved while a run writes to it."""
    old, new = records(tmp_path / "old"), tmp_path / "new"
    journal = add_journal(old, Owner.this_process(sqlite_uri(old / "mlflow.db"), RUN))
    old.rename(new)
    adopt_records(new)
    assert places(new) == expected(old)
    with pytest.raises(UserError, match=f"in use as {old}, by run 01234567"):
        check_place(new)
    Journal(new / "journals" / RUN, journal.owner).release()
    adopt_records(new)
    assert places(new) == expected(new)
    check_place(new)


def test_in_a_copy_a_run_of_the_original_is_not_alive(tmp_path: Path) -> None:
    old, new = records(tmp_path / "old"), tmp_path / "new"
    original = add_journal(old, Owner.this_process(sqlite_uri(old / "mlflow.db"), RUN))
    shutil.copytree(old, new)
    adopt_records(new)
    assert places(new) == expected(new)
    (journal,) = Journal.find_all(new / "journals")
    assert not journal.alive
    assert original.alive


def test_a_journal_keeps_the_time_of_its_last_heartbeat(tmp_path: Path) -> None:
    """Else the dead run of another host would seem to live for another minute."""
    old, new = records(tmp_path / "old"), tmp_path / "new"
    path = add_journal(old).folder / "owner.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": "another"}))
    os.utime(path, (1e9, 1e9))
    old.rename(new)
    adopt_records(new)
    (journal,) = Journal.find_all(new / "journals")
    assert journal.owner.uri == sqlite_uri(new / "mlflow.db")
    assert not journal.alive


def test_a_copy_by_hard_links_is_refused(tmp_path: Path) -> None:
    old, new = records(tmp_path / "old"), tmp_path / "new"
    shutil.copytree(old, new, copy_function=os.link)
    with pytest.raises(UserError, match="one file with two names"):
        adopt_records(new)
    assert places(old) == expected(old)


def test_a_database_that_is_in_use_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved_records, "BUSY_TIMEOUT", 0.1)
    old, new = records(tmp_path / "old"), tmp_path / "new"
    old.rename(new)
    with closing(sqlite3.connect(new / "mlflow.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UserError, match="its paths cannot be updated"):
            adopt_records(new)
        other.execute("ROLLBACK")
    adopt_records(new)
    assert places(new) == expected(new)


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is read-only, also for the superuser."""
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK and access(path, mode))


@pytest.mark.usefixtures("read_only")
def test_a_read_only_copy_is_read_from_a_copy_of_its_database(tmp_path: Path) -> None:
    old, new = records(tmp_path / "old"), tmp_path / "new"
    with closing(sqlite3.connect(old / "mlflow.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        with database:
            database.execute(
                "INSERT INTO experiments VALUES ('late', ?)", (f"{old.as_uri()}/artifacts/late",)
            )
        shutil.copytree(old, new)  # with a log that is not written back yet
    before = content(new)
    adopt_records(new)
    copy = readable_copy(new)
    artifacts = (new / "artifacts").as_uri()
    assert places(copy.parent)[:2] == [f"{artifacts}/flowers", f"{artifacts}/late"]
    assert content(new) == before


@pytest.mark.usefixtures("read_only")
def test_the_copy_is_removed_when_its_process_ends(tmp_path: Path) -> None:
    root = records(tmp_path / "mlruns")
    with ProcessPoolExecutor(1, get_context("fork")) as pool:
        copy = pool.submit(readable_copy, root).result()
    assert copy.name == "mlflow.db"
    assert not copy.parent.exists()
