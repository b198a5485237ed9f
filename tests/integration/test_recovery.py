"""Runs whose process died are closed and delivered; runs of living processes are left alone."""

from __future__ import annotations

import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from stores import (
    DEAD,
    FailingClient,
    RecordingTerminal,
    Store,
    dead_owner,
    end,
    journal_of_dead_process,
    journals,
    metric,
    new_run,
    points,
    set_owner,
    status,
    wait_for,
)

from runner.cli import sync
from runner.tracking.journal import HEARTBEAT_TIMEOUT, Journal, Owner
from runner.tracking.process_identity import ProcessIdentity
from runner.tracking.recovery import recover_runs
from runner.tracking.uploader import EXITED_UNEXPECTEDLY
from runner.utils.console import Terminal


@pytest.fixture
def store(mlflow_store: Store) -> Store:
    return mlflow_store


@pytest.fixture
def terminal() -> RecordingTerminal:
    return RecordingTerminal()


# Journals of dead processes


def test_a_run_whose_process_died_is_closed(store: Store, terminal: RecordingTerminal) -> None:
    server, client = store
    run_id = new_run(store)
    journal = journal_of_dead_process(store, run_id)
    journal.append(metric("loss", 2.0, 1))
    journal.artifact_path("checkpoints/best.safetensors").write_text("saved, but not logged")
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "metrics", "step": 2, "ti')
    recover_runs(server, client, terminal)
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["runner.reason"] == EXITED_UNEXPECTEDLY
    assert points(client, run_id, "loss") == [(1, 2.0)]
    (file_info,) = client.list_artifacts(run_id, "checkpoints")
    assert file_info.path == "checkpoints/best.safetensors"
    assert run_id not in journals(server)
    assert any(run_id in warning for warning in terminal.warnings)


def test_a_partial_end_is_not_an_end(store: Store, terminal: RecordingTerminal) -> None:
    server, client = store
    journal = journal_of_dead_process(store, new_run(store))
    journal.append(end())
    events = journal.folder / "events.jsonl"
    os.truncate(events, events.stat().st_size - 3)
    recover_runs(server, client, terminal)
    assert status(client, journal.owner.run_id) == "KILLED"


def test_a_failure_that_only_mlflow_knows_stays_a_failure(store: Store, silent: Terminal) -> None:
    """The disk of the journal was full, so that the end could not be written to it."""
    server, client = store
    run_id = new_run(store)
    client.set_tag(run_id, "runner.reason", "The disk is full.")
    client.set_terminated(run_id, "FAILED")
    journal_of_dead_process(store, run_id)
    recover_runs(server, client, silent)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["runner.reason"]) == ("FAILED", "The disk is full.")


def test_records_that_cannot_be_delivered_yet_stay(store: Store, terminal: RecordingTerminal) -> None:
    server, client = store
    run_id = new_run(store)
    journal = journal_of_dead_process(store, run_id)
    journal.append(metric("loss", 2.0, 1))
    journal.append(end())
    away: Any = FailingClient(client, 10**9, ("log_batch",))
    recover_runs(server, away, terminal)
    assert run_id in journals(server)
    assert "could not be delivered yet" in terminal.warnings[0]
    recover_runs(server, client, terminal)
    assert points(client, run_id, "loss") == [(1, 2.0)]
    assert status(client, run_id) == "FINISHED"
    assert run_id not in journals(server)


def test_the_journal_of_a_deleted_run_is_removed(store: Store, silent: Terminal) -> None:
    server, client = store
    run_id = new_run(store)
    journal_of_dead_process(store, run_id).append(metric("loss", 2.0, 1))
    client.delete_run(run_id)
    recover_runs(server, client, silent)
    assert run_id not in journals(server)


def test_an_incomplete_journal_does_not_stop_the_others(store: Store, silent: Terminal) -> None:
    server, client = store
    incomplete = server.journals / "incomplete"
    incomplete.mkdir(parents=True)
    (incomplete / "owner.json").write_text('{"uri": "sq')
    journal = journal_of_dead_process(store, new_run(store))
    recover_runs(server, client, silent)
    assert status(client, journal.owner.run_id) == "KILLED"
    assert incomplete.exists()


# Journals of others


def test_a_journal_of_another_store_is_left_alone(store: Store, silent: Terminal) -> None:
    server, client = store
    journal = Journal.create(server.journals, dead_owner("https://elsewhere.example", "their-run"))
    recover_runs(server, client, silent)
    assert journal.folder.exists()
    assert journal.events() == []


def test_a_run_of_another_host_is_closed_when_its_heartbeats_stop(store: Store, silent: Terminal) -> None:
    """A container that was started again has another name."""
    server, client = store
    run_id = new_run(store)
    owner = dataclasses.replace(dead_owner(server.uri, run_id), host="elsewhere")
    journal = Journal.create(server.journals, owner)
    journal.append(metric("loss", 0.5, 1))
    recover_runs(server, client, silent)
    assert status(client, run_id) == "RUNNING", "it may be alive"
    long_ago = time.time() - 2 * HEARTBEAT_TIMEOUT
    os.utime(journal.folder / "owner.json", (long_ago, long_ago))
    assert sync.undelivered(server.root)
    recover_runs(server, client, silent)
    assert status(client, run_id) == "KILLED"
    assert points(client, run_id, "loss") == [(1, 0.5)]


def test_a_run_that_was_taken_over_in_the_meantime_is_not_closed(
    store: Store, terminal: RecordingTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dead when the journals were listed; delivering another one took a while."""
    server, client = store
    journal = journal_of_dead_process(store, new_run(store))
    listed = Journal.find_all(server.journals)
    set_owner(journal, Owner.this_process(server.uri, journal.owner.run_id))
    monkeypatch.setattr(Journal, "find_all", classmethod(lambda _cls, _root: listed))
    recover_runs(server, client, terminal)
    assert journal.events() == []
    assert terminal.warnings == []
    assert status(client, journal.owner.run_id) == "RUNNING"


def test_a_delivery_by_another_process_is_not_disturbed(store: Store, silent: Terminal) -> None:
    server, client = store
    journal = journal_of_dead_process(store, new_run(store))
    with Journal.locked(journal.folder):
        recover_runs(server, client, silent)
        assert journal.events() == []
    recover_runs(server, client, silent)
    assert status(client, journal.owner.run_id) == "KILLED"
    assert journal.owner.run_id not in journals(server)


# Runs without a journal


def test_runs_without_a_journal_are_closed_if_their_process_is_dead(
    store: Store, terminal: RecordingTerminal
) -> None:
    server, client = store
    here = ProcessIdentity.current()
    reused = dataclasses.replace(here, started=here.started - 5000)
    elsewhere = dataclasses.replace(DEAD, host="another-host")
    dead, recycled, alive, foreign = (
        new_run(store, **each.tags()) for each in (DEAD, reused, here, elsewhere)
    )
    untagged = new_run(store)  # logged by another program
    recover_runs(server, client, terminal)
    assert {run_id: status(client, run_id) for run_id in (dead, recycled, alive, foreign, untagged)} == {
        dead: "KILLED",
        recycled: "KILLED",
        alive: "RUNNING",
        foreign: "RUNNING",
        untagged: "RUNNING",
    }
    assert client.get_run(dead).data.tags["runner.reason"] == EXITED_UNEXPECTEDLY
    assert len(terminal.warnings) == 2


def test_tags_that_a_person_changed_are_harmless(store: Store, silent: Terminal) -> None:
    server, client = store
    run_id = new_run(store, **{**DEAD.tags(), "runner.pid": "mine"})
    recover_runs(server, client, silent)
    assert status(client, run_id) == "RUNNING"
    client.set_tag(run_id, "runner.pid", str(DEAD.pid))
    recover_runs(server, client, silent)
    assert status(client, run_id) == "KILLED"


def test_a_process_that_ended_is_dead(store: Store, silent: Terminal) -> None:
    """A real one, of which the others are models; while it lives its run is left alone."""
    server, client = store
    process = psutil.Popen(["sleep", "600"])
    owner = dataclasses.replace(
        ProcessIdentity.current(),
        pid=process.pid,
        started=round(process.create_time() - psutil.boot_time(), 2),
    )
    run_id = new_run(store, **owner.tags())
    recover_runs(server, client, silent)
    assert status(client, run_id) == "RUNNING"
    process.kill()

    def is_closed() -> bool:  # also while nobody has waited for the process: it is a zombie then
        recover_runs(server, client, silent)
        return status(client, run_id) == "KILLED"

    wait_for(is_closed)
    process.wait()


def test_the_folder_of_an_interrupted_removal_goes(store: Store, silent: Terminal, tmp_path: Path) -> None:
    server, client = store
    removed = server.journals / "0123.gone"
    removed.mkdir(parents=True)
    recover_runs(server, client, silent)
    assert not removed.exists()
