"""Runs in a real MLflow database: everything arrives once, outages lose nothing, and every run tells how it ended."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
from stores import (
    UPLOADS,
    FailingClient,
    RecordingTerminal,
    Store,
    Track,
    artifacts,
    journal_of_dead_process,
    journals,
    new_run,
    points,
    resumable,
    status,
    wait_for,
)

from runner.tracking.journal import now_ms
from runner.tracking.mlflow_tracker import MlflowTracker
from runner.tracking.process_identity import this_host
from runner.tracking.system_metrics import SystemMetricsSampler
from runner.tracking.uploader import BATCH_SIZE, deliver
from runner.utils.console import Terminal
from runner.utils.errors import DivergedError, UserError
from runner.utils.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_tracking_uri")


# What arrives


def test_everything_arrives_once(store: Store, track: Track) -> None:
    server, client = store
    with track("whole") as tracker:
        run_id = tracker.run_id
        tracker.log_params({"train.epochs": 3, "optim.lr": 1e-3, "model.weights": None})
        tracker.set_tags({"runner.manifest": "abc"})
        tracker.log_dataset("pictures", "0123abcd", "/data/pictures", '{"images": 36}', "train")
        tracker.log_text("experiment.yaml", "name: small\n")
        for step in (1, 2, 3):
            tracker.log_metrics({"train/loss": 1 / step, "lr": 0.5}, step)
        picture = tracker.artifact_path("figures/loss.png")
        picture.write_bytes(b"a picture")
        tracker.log_artifact(picture, "figures")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.end_time >= run.info.start_time
    assert run.data.params == {"train.epochs": "3", "optim.lr": "0.001", "model.weights": "None"}
    assert points(client, run_id, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert points(client, run_id, "lr") == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert run.data.tags["runner.manifest"] == "abc"
    assert run.data.tags["runner.host"] == this_host()
    assert run.data.tags["runner.pid"] == str(os.getpid())
    assert "runner.reason" not in run.data.tags
    assert artifacts(client, run_id) == ["experiment.yaml", "figures"]
    assert artifacts(client, run_id, "figures") == ["figures/loss.png"]
    (used,) = (each.dataset for each in run.inputs.dataset_inputs)
    assert (used.name, used.digest, used.source) == ("pictures", "0123abcd", "/data/pictures")
    assert run_id not in journals(server), "the journal is removed when everything is delivered"


def test_an_artifact_keeps_its_content(store: Store, track: Track, tmp_path: Path) -> None:
    with track("content") as tracker:
        tracker.log_text("manifest.csv", "path,class\nä.png,été\n")
    fetched = store[1].download_artifacts(tracker.run_id, "manifest.csv", str(tmp_path))
    assert Path(fetched).read_text(encoding="utf-8") == "path,class\nä.png,été\n"


def test_a_child_names_its_parent(store: Store, track: Track) -> None:
    with track("parent") as parent, track("child", parent_id=parent.run_id) as child:
        pass
    run = store[1].get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.info.run_name == "child"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_become_tags(store: Store, track: Track, value: float) -> None:
    client = store[1]
    with track("not finite") as tracker:
        tracker.log_metrics({"train/loss": value, "lr": 0.1}, 7)
    run = client.get_run(tracker.run_id)
    assert "train/loss" not in run.data.metrics
    assert points(client, tracker.run_id, "lr") == [(7, 0.1)]
    assert run.data.tags["runner.train/loss"] == f"{value} at step 7"
    assert run.info.status == "FINISHED"


def test_more_points_than_a_request_holds(store: Store) -> None:
    """After an outage a batch may hold more than the 1,000 points that MLflow takes at a time."""
    client = store[1]
    journal = journal_of_dead_process(store, new_run(store))
    run_id, steps = journal.owner.run_id, BATCH_SIZE + 5
    for step in range(steps):
        values = {f"system/{number}": float(step) for number in range(12)}
        journal.append({"kind": "metrics", "step": step, "time": now_ms(), "values": values})
    deliver(journal, client)
    for name in ("system/0", "system/11"):
        assert points(client, run_id, name) == [(step, float(step)) for step in range(steps)]
    assert "runner.refused" not in client.get_run(run_id).data.tags
    journal.remove()
    client.set_terminated(run_id)


def test_a_tracker_uploads_during_the_run(store: Store, silent: Terminal) -> None:
    server, client = store
    tracker = MlflowTracker(server, client, new_run(store), "in progress")
    tracker.log_metrics({"loss": 1.0}, 1)
    wait_for(lambda: bool(client.get_metric_history(tracker.run_id, "loss")))
    assert points(client, tracker.run_id, "loss") == [(1, 1.0)]
    assert status(client, tracker.run_id) == "RUNNING"
    tracker.end("FINISHED", "", silent)
    assert status(client, tracker.run_id) == "FINISHED"


# How runs end


@pytest.mark.parametrize(
    ("error", "expected", "reason"),
    [
        (UserError("The disk is too small."), "FAILED", "The disk is too small."),
        (ZeroDivisionError("by zero"), "FAILED", "ZeroDivisionError: by zero"),
        (Interrupted(signal.SIGTERM), "KILLED", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "KILLED", "stopped by SIGINT"),
    ],
)
def test_a_run_tells_how_it_ended(
    store: Store, track: Track, error: BaseException, expected: str, reason: str
) -> None:
    client, started = store[1], []

    def fail() -> None:
        with track("ends badly") as tracker:
            started.append(tracker.run_id)
            tracker.log_metrics({"loss": 1.0}, 1)
            raise error

    with pytest.raises(type(error)):
        fail()
    run = client.get_run(started[0])
    assert (run.info.status, run.data.tags["runner.reason"]) == (expected, reason)
    assert points(client, started[0], "loss") == [(1, 1.0)], "partial results are kept"


@pytest.mark.parametrize(
    ("error", "child", "expected"),
    [
        (Interrupted(signal.SIGTERM), False, "./launch.sh train --resume"),
        (DivergedError("The loss is nan."), False, "--branch"),
        (Interrupted(signal.SIGTERM), True, ""),
    ],
    ids=["stopped", "diverged", "child"],
)
def test_the_end_of_a_run_tells_how_to_resume_it(
    store: Store, track: Track, error: BaseException, child: bool, expected: str
) -> None:
    terminal = RecordingTerminal()
    parent_id = new_run(store) if child else ""

    def run() -> None:
        with track("ends", terminal=terminal, parent_id=parent_id) as tracker:
            resumable(tracker.journal)
            raise error

    with pytest.raises(type(error)):
        run()
    hints = [warning for warning in terminal.warnings if "--resume" in warning]
    assert len(hints) == bool(expected)
    assert all(expected in hint for hint in hints)


# Outages and refusals


@pytest.mark.parametrize(
    "after",
    [pytest.param(False, id="request lost", marks=pytest.mark.slow), pytest.param(True, id="answer lost")],
)
def test_an_outage_loses_and_doubles_nothing(store: Store, track: Track, after: bool) -> None:
    server, client = store
    failing = FailingClient(client, 3, UPLOADS, after)
    with track("outage", failing) as tracker:
        tracker.log_params({"a": 1})
        for step in range(1, 21):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.log_dataset("pictures", "digest", "source", "{}", "val")
        tracker.log_text("note.txt", "hello")
    assert failing.failures == 0, "the outage took place"
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1"}
    assert points(client, tracker.run_id, "loss") == [(step, float(step)) for step in range(1, 21)]
    assert len(run.inputs.dataset_inputs) == 1
    assert artifacts(client, tracker.run_id) == ["note.txt"]
    assert tracker.run_id not in journals(server)


# System metrics


def test_a_full_disk_does_not_end_system_metrics(track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()

    def full(*_: object) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("runner.tracking.system_metrics.SAMPLE_INTERVAL", 0.05)
    with track("full disk") as tracker:
        sampler = SystemMetricsSampler(tracker)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowTracker, "_log", full)
            sampler.start()
            assert failed.wait(120)
        wait_for(lambda: any("system/" in str(event) for event in tracker.journal.events()))
        sampler.stop()


# The store


# The import of MLflow
