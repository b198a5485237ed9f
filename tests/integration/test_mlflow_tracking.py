"""Runs in a real MLflow database: everything arrives once, outages lose nothing, and every run tells how it ended."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from stores import (
    EXPERIMENT,
    FailingClient,
    RecordingTerminal,
    Store,
    artifacts,
    copy_store,
    dead_owner,
    end,
    journal_of_dead_process,
    journals,
    metric,
    new_run,
    open_store,
    points,
    resumable,
    set_owner,
    status,
    wait_for,
)

from runner.tracking import uploader
from runner.tracking.journal import now_ms
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.mlflow_tracker import MlflowTracker
from runner.tracking.process_identity import this_host
from runner.tracking.recovery import recover_runs
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.tracking.system_metrics import SystemMetricsSampler
from runner.tracking.uploader import BATCH_SIZE, deliver
from runner.utils.console import Terminal
from runner.utils.errors import DivergedError, UserError
from runner.utils.signals import Interrupted

pytestmark = pytest.mark.usefixtures("no_tracking_uri")
UPLOADS = ("log_batch", "log_inputs", "log_artifact", "set_terminated")


@pytest.fixture(scope="module")
def store(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all tests here: each looks at its own runs only."""
    return open_store(copy_store(mlflow_template, tmp_path_factory.mktemp("store")))


Track = Callable[..., AbstractContextManager[MlflowTracker]]


@pytest.fixture
def track(store: Store, silent: Terminal) -> Track:
    """`track("name")`: a run in the store, with the options of a `RunRequest`."""

    def start(name: str, client: Any = None, terminal: Terminal = silent, **request: Any) -> Any:
        return track_run(store[0], client or store[1], RunRequest(EXPERIMENT, name, **request), terminal)

    return start


# What arrives


def test_everything_arrives_once(store: Store, track: Track) -> None:
    server, client = store
    with track("whole") as tracker:
        run_id = tracker.run_id
        tracker.log_params({"train.epochs": 3, "optim.lr": 1e-3, "model.weights": None})
        tracker.set_tags({"runner.manifest": "abc"})
        tracker.log_dataset("pictures", "0123abcd", "/data/pictures", '{"images": 36}')
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


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
def test_an_outage_loses_and_doubles_nothing(store: Store, track: Track, after: bool) -> None:
    server, client = store
    failing = FailingClient(client, 3, UPLOADS, after)
    with track("outage", failing) as tracker:
        tracker.log_params({"a": 1})
        for step in range(1, 21):
            tracker.log_metrics({"loss": float(step)}, step)
        tracker.log_dataset("pictures", "digest", "source", "{}")
        tracker.log_text("note.txt", "hello")
    assert failing.failures == 0, "the outage took place"
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1"}
    assert points(client, tracker.run_id, "loss") == [(step, float(step)) for step in range(1, 21)]
    assert len(run.inputs.dataset_inputs) == 1
    assert artifacts(client, tracker.run_id) == ["note.txt"]
    assert tracker.run_id not in journals(server)


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


# System metrics


def test_system_metrics_are_logged(store: Store, track: Track, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.tracking.system_metrics.SAMPLE_INTERVAL", 0.1)
    name = "system/cpu_utilization_percentage"
    with track("system metrics", system_metrics=True) as tracker:
        wait_for(lambda: sum(name in str(event) for event in tracker.journal.events()) > 2)
    steps = [step for step, _ in points(store[1], tracker.run_id, name)]
    assert steps == list(range(len(steps)))


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


def test_a_deleted_experiment_is_restored(store: Store) -> None:
    server, client = store
    first = server.get_or_create_experiment(client, "restored")
    client.delete_experiment(first)
    assert server.get_or_create_experiment(client, "restored") == first
    assert client.get_experiment(first).lifecycle_stage == "active"


def test_artifacts_lie_in_the_stores_own_folder(store: Store) -> None:
    server, client = store
    found = client.get_experiment(server.get_or_create_experiment(client, "with a blank"))
    assert found.artifact_location == (server.root / "artifacts" / "with a blank").as_uri()


def test_connecting_to_one_store_does_not_select_the_next(store: Store, tmp_path: Path) -> None:
    store[0].connect()
    assert tracking_server(str(tmp_path / "other")).uri == f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"


def log_in_new_store(root: str, number: int, answers: Any) -> None:
    """What each of several processes does with a store that does not exist yet."""
    try:
        server = tracking_server(root)
        client = server.connect()
        with track_run(
            server, client, RunRequest("crowd", f"run {number}"), Terminal(enabled=False)
        ) as tracker:
            tracker.log_metrics({"number": float(number)}, 1)
        answers.put(tracker.run_id)
    except BaseException as error:
        answers.put(f"{type(error).__name__}: {error}")


@pytest.mark.slow
def test_four_processes_create_one_store(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    root = tmp_path / "fresh"
    crowd = [spawn.Process(target=log_in_new_store, args=(str(root), number, answers)) for number in range(4)]
    for process in crowd:
        process.start()
    run_ids = [answers.get(timeout=200) for _ in crowd]
    for process in crowd:
        process.join(60)
    assert [process.exitcode for process in crowd] == [0] * 4
    _, client = open_store(root)
    runs = [client.get_run(run_id) for run_id in run_ids]
    assert sorted(run.data.metrics["number"] for run in runs) == [0, 1, 2, 3]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len([each for each in client.search_experiments() if each.name == "crowd"]) == 1
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# The import of MLflow

WATCH_IMPORT = """
import importlib.abc, os, sys, pathlib
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"), os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
from runner.tracking.mlflow_server import tracking_server
tracking_server(sys.argv[1]).connect()
"""


def test_telemetry_and_pickles_are_off_before_mlflow_is_imported(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    command = [sys.executable, "-c", WATCH_IMPORT, str(tmp_path)]
    outcome = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert outcome.stdout == "true false\n", outcome.stderr


def test_mlflow_is_not_imported_before_it_is_needed() -> None:
    modules = "runner.training.seeds, runner.training.dry_run, runner.cli.evaluate"
    code = f"import sys, {modules}; print('mlflow' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.stdout == "False\n", outcome.stderr
