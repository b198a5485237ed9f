"""`runner sync`: pending records are delivered, each run's to its own store."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from consistency import inconsistencies
from stores import (
    Store,
    copy_store,
    dead_owner,
    end,
    journal_of_dead_process,
    journals,
    metric,
    new_run,
    open_store,
    status,
)

from runner.cli import sync
from runner.tracking.journal import Journal
from runner.utils.exit_status import run_main

Sync = Callable[[], tuple[int, str, str]]


@pytest.fixture
def store(mlflow_store: Store) -> Store:
    return mlflow_store


@pytest.fixture
def run_sync(store: Store, capsys: pytest.CaptureFixture[str]) -> Sync:
    """Run the command: its status, output and errors."""

    def run() -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_main(lambda: sync.main(["--tracking.root", str(store[0].root)]))
        printed = capsys.readouterr()
        return code, " ".join(printed.out.split()), " ".join(printed.err.split())

    return run


@pytest.fixture
def unreachable() -> str:
    """The address of a server that does not exist."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def pending_journal(store: Store, uri: str, run_id: str) -> Journal:
    """The journal of a dead process with something to deliver to a store."""
    journal = Journal.create(store[0].journals, dead_owner(uri, run_id))
    journal.append(metric("val/loss", 0.25, 1))
    journal.append(end())
    return journal


def test_nothing_to_deliver(run_sync: Sync) -> None:
    assert run_sync() == (0, "Nothing to deliver.", "")


def test_pending_records_are_delivered_and_dead_runs_closed(store: Store, run_sync: Sync) -> None:
    server, client = store
    finished, killed = new_run(store), new_run(store)
    pending_journal(store, server.uri, finished)
    journal_of_dead_process(store, killed).append(metric("val/loss", 0.5, 1))
    code, output, errors = run_sync()
    assert (code, errors) == (0, "")
    assert output.endswith("Delivered the records of 2 of 2 runs.")
    assert (status(client, finished), status(client, killed)) == ("FINISHED", "KILLED")
    assert inconsistencies(server.root) == []
    assert run_sync()[1] == "Nothing to deliver."


def test_a_server_that_is_away_is_reported_in_one_sentence(
    store: Store, run_sync: Sync, unreachable: str
) -> None:
    journal = pending_journal(store, unreachable, "0" * 32)
    before = {path: path.read_bytes() for path in journal.folder.rglob("*") if path.is_file()}
    code, _, errors = run_sync()
    assert code == 2
    assert errors.count("runner: ") == 1
    assert "Traceback" not in errors
    assert "does not answer" in errors
    assert "00000000" in errors
    assert {path: path.read_bytes() for path in before} == before


def test_each_store_gets_its_own_records(
    store: Store, run_sync: Sync, unreachable: str, tmp_path: Path
) -> None:
    """One journal of the embedded store, one of another database, one of a server that is away."""
    server, client = store
    other = open_store(copy_store(server.root / "mlflow.db", tmp_path / "other"))
    ours, theirs = new_run(store), new_run(other)
    pending_journal(store, server.uri, ours)
    pending_journal(store, other[0].uri, theirs)
    pending_journal(store, unreachable, "0" * 32)
    code, output, errors = run_sync()
    assert code == 2
    assert "Delivered the records of 2 of 3 runs." in output
    assert "The records of run 00000000 are still not delivered" in errors
    assert status(client, ours) == "FINISHED"
    assert status(other[1], theirs) == "FINISHED"
    assert other[1].get_run(theirs).data.metrics == {"val/loss": 0.25}
    assert journals(server) == ["0" * 32]


def test_a_password_in_an_address_is_hidden(store: Store, run_sync: Sync, unreachable: str) -> None:
    pending_journal(store, unreachable.replace("//", "//user:secret@"), "0" * 32)
    code, output, errors = run_sync()
    assert code == 2
    assert "secret" not in output + errors


def test_journals_without_an_owner_are_not_delivered(store: Store, run_sync: Sync) -> None:
    journal = pending_journal(store, store[0].uri, "0" * 32)
    (journal.folder / "owner.json").write_text("{")
    assert run_sync() == (0, "Nothing to deliver.", "")
    assert journal.folder.exists()


def test_living_processes_are_left_alone(store: Store, run_sync: Sync) -> None:
    owner = dataclasses.replace(dead_owner(store[0].uri, "0" * 32), host="another-host")
    Journal.create(store[0].journals, owner).append(metric("val/loss", 0.5, 1))
    assert run_sync() == (0, "Nothing to deliver.", "")
