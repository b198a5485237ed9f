"""Uploads that fail: retried, refused for good, or left for later."""

from __future__ import annotations

from typing import Any

import pytest
from stores import (
    UPLOADS,
    FailingClient,
    RecordingTerminal,
    Store,
    Track,
    artifacts,
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

from runner.tracking import uploader
from runner.tracking.model_registry import MODEL_TAG, ModelInfo
from runner.tracking.recovery import recover_runs
from runner.tracking.uploader import deliver

pytestmark = pytest.mark.usefixtures("no_tracking_uri")


def test_records_of_an_outage_at_the_end_are_delivered_later(
    store: Store, track: Track, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = store
    monkeypatch.setattr(uploader, "UPLOAD_TIMEOUT", 1.0)
    terminal = RecordingTerminal()
    with track("away", FailingClient(client, 10**9, UPLOADS), terminal) as tracker:
        tracker.log_metrics({"loss": 0.5}, 1)
        wait_for(lambda: tracker.uploader.error is not None)
        tracker.log_text("note.txt", "hello")
    run_id = tracker.run_id
    assert run_id in journals(server)
    assert "records wait on disk" in terminal.warnings[0]
    assert str(server.journals / run_id) in terminal.warnings[-1]
    assert status(client, run_id) == "RUNNING"

    recover_runs(server, client, terminal)
    assert status(client, run_id) == "RUNNING", "its process, this one, is alive"
    set_owner(tracker.journal, dead_owner(server.uri, run_id))
    for _ in range(2):
        recover_runs(server, client, terminal)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED", "it did finish: only its records were late"
    assert "runner.reason" not in run.data.tags
    assert points(client, run_id, "loss") == [(1, 0.5)]
    assert artifacts(client, run_id) == ["note.txt"]
    assert run_id not in journals(server)


def test_uploading_everything_twice_is_harmless(store: Store) -> None:
    client, run_id = store[1], new_run(store)
    journal = journal_of_dead_process(store, run_id)
    journal.artifact_path("note.txt").write_text("hello")
    journal.append({"kind": "params", "values": {"a": "1"}})
    journal.append(metric("loss", 2.0, 1))
    journal.append(metric("loss", 1.0, 2))
    journal.append({"kind": "input", "name": "data", "digest": "d", "source": "s", "profile": "{}"})
    journal.append({"kind": "artifact", "file": "note.txt", "folder": ""})
    journal.append(end())
    assert deliver(journal, client)
    (journal.folder / "sent").unlink()  # as if the process had died before it noted the delivery
    assert deliver(journal, client)
    run = client.get_run(run_id)
    assert points(client, run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert run.data.params == {"a": "1"}
    assert len(run.inputs.dataset_inputs) == 1
    assert artifacts(client, run_id) == ["note.txt"]
    assert "runner.refused" not in run.data.tags
    journal.remove()


def test_a_refused_event_is_noted_and_does_not_stop_the_others(store: Store) -> None:
    client, run_id = store[1], new_run(store)
    journal = journal_of_dead_process(store, run_id)
    journal.append({"kind": "params", "values": {"a": "1"}})
    deliver(journal, client)
    journal.append(metric("loss", 2.0, 1))
    journal.append({"kind": "params", "values": {"a": "another value, which MLflow refuses"}})
    journal.append(metric("loss", 1.0, 2))
    journal.append(end())
    assert deliver(journal, client)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1"}
    assert "not allowed" in run.data.tags["runner.refused"]
    assert points(client, run_id, "loss") == [(1, 2.0), (2, 1.0)], "those of the same request arrive"
    journal.remove()


@pytest.mark.slow
def test_a_registry_that_wants_a_login_does_not_keep_the_run_running(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", "databricks-uc")
    monkeypatch.setattr(uploader, "FIRST_RETRY", 0.0)
    server, run_id = store[0], new_run(store)
    client = server.connect()
    journal = journal_of_dead_process(store, run_id)
    (journal.folder / "model").mkdir()
    (journal.folder / "model" / "MLmodel").write_text("flavors: {}")
    info = ModelInfo("mine", {"val/top1": 0.5}, "val/top1", "digest", step=1)
    journal.append({"kind": "model", "folder": "model", "info": info.to_dict()})
    journal.append(metric("loss", 1.0, 1))
    journal.append(end())
    terminal = RecordingTerminal()
    recover_runs(server, client, terminal)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["loss"] == 1.0
    assert "the model" in run.data.tags["runner.refused"]
    assert run.data.tags[MODEL_TAG].startswith("m-"), "its files are in MLflow"
    assert run_id not in journals(server)
    assert "the model of run" in terminal.lines[0]


def test_a_run_that_is_deleted_while_it_runs_is_not_said_to_be_in_mlflow(store: Store, track: Track) -> None:
    server, client = store
    terminal = RecordingTerminal()
    with track("deleted", terminal=terminal) as tracker:
        client.delete_run(tracker.run_id)
        tracker.log_metrics({"loss": 0.5}, 1)
    assert tracker.deleted
    (warning,) = terminal.warnings
    assert "was deleted in MLflow while it ran" in warning
    assert tracker.run_id not in journals(server)


def test_a_file_that_is_replaced_during_its_upload_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = store[1]
    journal = journal_of_dead_process(store, new_run(store))
    path = journal.artifact_path("checkpoints/best.safetensors")
    path.write_text("old")
    journal.append({"kind": "artifact", "file": "checkpoints/best.safetensors", "folder": "checkpoints"})
    upload = client.log_artifact

    def replace_during_upload(*args: Any) -> None:
        upload(*args)
        newer = path.with_name("newer")
        newer.write_text("new")
        newer.replace(path)

    monkeypatch.setattr(client, "log_artifact", replace_during_upload)
    deliver(journal, client)
    assert path.read_text() == "new"
    journal.remove()
    client.set_terminated(journal.owner.run_id)


def test_system_metrics_are_logged(store: Store, track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.tracking.system_metrics.SAMPLE_INTERVAL", 0.1)
    name = "system/cpu_utilization_percentage"
    with track("system metrics", system_metrics=True) as tracker:
        wait_for(lambda: sum(name in str(event) for event in tracker.journal.events()) > 2)
    steps = [step for step, _ in points(store[1], tracker.run_id, name)]
    assert steps == list(range(len(steps)))
