"""Storages of studies: journal files, SQLite, what is refused, and several processes on one study."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from studies import make_plan, numbers_of, start_worker, states, work

from runner.study import outages, storage
from runner.study.outages import Outage
from runner.study.plan import Plan
from runner.study.study import Study
from runner.study.trials import is_baseline
from runner.utils.errors import UserError

Make = Callable[..., Plan]
SECRET = "hush-hush"


@pytest.fixture
def plan(tmp_path: Path) -> Make:
    """`plan(trials=9)`: a plan whose journal lies in `tmp_path`, with some fields changed."""
    return lambda storage=tmp_path / "studies.journal", **changes: make_plan(storage, **changes)


def test_an_incomplete_last_line_is_removed(plan: Make, tmp_path: Path) -> None:
    work(Study(plan(trials=3), tmp_path))
    journal = tmp_path / "studies.journal"
    content = journal.read_bytes()
    journal.write_bytes(content + content.splitlines(keepends=True)[-1][:-9])
    study = Study(plan(trials=5), tmp_path)
    assert states(study) == ["COMPLETE"] * 3
    assert len(work(study)) == 2
    assert states(Study(plan(trials=5), tmp_path)) == ["COMPLETE"] * 5
    assert journal.read_bytes().startswith(content)


def test_a_sqlite_database_is_a_storage(plan: Make, tmp_path: Path) -> None:
    about = plan(f"sqlite:///{tmp_path / 'studies.db'}", trials=3)
    work(Study(about, tmp_path), 1)
    study = Study(about, tmp_path)
    assert len(work(study)) == 2
    assert states(study) == ["COMPLETE"] * 3
    assert study.is_finished


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (f"postgresql://me:{SECRET}@127.0.0.1:1/studies", "cannot be reached"),
        (f"postgresql://127.0.0.1:1/studies?user=me&password={SECRET}", "cannot be reached"),
        (f"postgresql://me:{SECRET}@127.0.0.1:port/studies", "cannot be"),
        (f"nosuch://me:{SECRET}@somewhere/studies", "nosuch"),
        (f"oracle://me:{SECRET}@somewhere/studies", "driver that is not installed"),
    ],
)
def test_a_database_that_cannot_be_used_is_named_without_its_password(
    plan: Make, tmp_path: Path, address: str, problem: str
) -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(UserError) as caught:
        Study(plan(address), tmp_path)
    assert problem in str(caught.value)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "worked_before"), [("FATAL:  the database system is starting up", False), ("refused", True)]
)
def test_a_database_that_is_known_to_be_there_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, reason: str, worked_before: bool
) -> None:
    failures = [OperationalError("", None, Exception(reason)) for _ in range(2)]

    def connect(*_: object) -> str:
        if failures:
            raise failures.pop()
        return "the storage"

    monkeypatch.setattr(storage, "DatabaseStorage", connect)
    monkeypatch.setattr(outages, "FIRST_RETRY", 0.0)
    notes: list[str] = []
    outage = Outage(f"postgresql://me:{SECRET}@db/studies", notes.append)
    assert storage.connect("postgresql://db/studies", outage, worked_before) == "the storage"
    assert f"does not answer ({reason})".replace("  ", " ") in notes[0]
    assert notes[1:] == ["the database postgresql://me:…@db/studies answers again"]


def test_a_missing_driver_is_named(plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name.startswith("psycopg") else find(name)
    )
    with pytest.raises(UserError, match=r"needs a driver.*vgg-runner\[postgresql\]") as caught:
        Study(plan(f"postgresql://me:{SECRET}@127.0.0.1:1/studies"), tmp_path)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"notes of mine\nand more", b"SQLite format 3\0\nabc", b"{}\n", b"[1, 2]\n"]
)
def test_a_file_that_is_no_journal_is_refused_and_not_changed(
    plan: Make, tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a journal"):
        Study(plan(path), tmp_path)
    assert path.read_bytes() == content


def test_a_folder_is_no_storage(plan: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        Study(plan(tmp_path), tmp_path)


def test_a_network_file_system_is_refused(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "network_file_system", lambda _: "nfs4")
    for address in (str(tmp_path / "a.journal"), f"sqlite:///{tmp_path / 'a.db'}"):
        with pytest.raises(UserError, match=r"network file system \(nfs4\).*PostgreSQL"):
            Study(plan(address), tmp_path)
    assert not (tmp_path / "a.journal").exists()


def test_four_processes_share_a_study(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=20, sampler="tpe")
    processes = [start_worker(about, tmp_path) for _ in range(4)]
    assert numbers_of(processes) == list(range(20))
    study = Study(about, tmp_path)
    assert states(study) == ["COMPLETE"] * 20
    assert [trial.number for trial in study.trials() if is_baseline(trial)] == [0]
    assert len({str(trial.params) for trial in study.trials()}) == 20
    assert study.is_finished
