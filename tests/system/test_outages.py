"""A tracking server that goes away: nothing is lost or doubled, and training never waits for it."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from accelerate import Accelerator
from faulty_proxy import FAULTS, FaultyProxy, MlflowServer
from helpers import QUIET, Make
from stores import RecordingTerminal, dead_owner, points, set_owner, wait_for

from runner.cli import sync
from runner.tracking import server_outages, uploader
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.tracking.mlflow_tracker import MlflowTracker
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.training import run
from runner.utils.exit_status import run_main

MOST_WAITED = 5.0
"""Seconds that a call of a tracker may take on a busy machine. A call that waited for the server would take more."""
PNG = bytes(range(256)) * 40


@pytest.fixture
def proxy(mlflow_server: MlflowServer) -> Iterator[FaultyProxy]:
    proxy = FaultyProxy(mlflow_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def server(proxy: FaultyProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingServer:
    """The tracking server behind the proxy. Timeouts are long: a busy machine takes seconds for an answer.

    A request that hangs does not wait for them: the proxy closes it when its mode changes.
    """
    monkeypatch.setattr("runner.tracking.mlflow_server.CONNECT_TIMEOUT", 60.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", proxy.address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    return tracking_server(str(tmp_path / "mlruns"))


@pytest.fixture
def durations(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each call that logs something took, in s."""
    durations: list[float] = []
    log = MlflowTracker._log

    def timed(self: MlflowTracker, event: dict[str, Any]) -> None:
        started = time.monotonic()
        log(self, event)
        durations.append(time.monotonic() - started)

    monkeypatch.setattr(MlflowTracker, "_log", timed)
    return durations


def log_epoch(tracker: MlflowTracker, step: int) -> None:
    """Log something of every kind."""
    tracker.log_metrics({"train/loss": 1 / step, "lr": 0.5}, step)
    tracker.log_metrics({"val/loss": 2 / step}, step)
    tracker.log_params({f"note.{step}": step})
    tracker.set_tags({f"runner.note.{step}": str(step)})
    tracker.log_text(f"notes/{step}.txt", f"epoch {step}")
    path = tracker.artifact_path(f"figures/{step}.png")
    path.write_bytes(PNG)
    tracker.log_artifact(path, "figures")


def check_complete(client: Any, run_id: str, epochs: int, database: Path) -> None:
    """Everything that so many calls of `log_epoch` logged is there, in order, once each."""
    found = client.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.info.end_time >= found.info.start_time
    for name, first in (("train/loss", 1), ("val/loss", 2)):
        expected = [(step, pytest.approx(first / step)) for step in range(1, epochs + 1)]
        assert points(client, run_id, name) == expected
        history = sorted(client.get_metric_history(run_id, name), key=lambda point: point.step)
        times = [point.timestamp for point in history]
        assert times == sorted(times)
    assert found.data.params == {f"note.{step}": str(step) for step in range(1, epochs + 1)}
    assert "runner.refused" not in found.data.tags
    for step in range(1, epochs + 1):
        assert found.data.tags[f"runner.note.{step}"] == str(step)
    figures = {each.path: each.file_size for each in client.list_artifacts(run_id, "figures")}
    assert figures == {f"figures/{step}.png": len(PNG) for step in range(1, epochs + 1)}
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        doubled = connection.execute(
            "SELECT key, step, COUNT(*) FROM metrics WHERE run_uuid = ? GROUP BY key, step HAVING COUNT(*) > 1",
            (run_id,),
        ).fetchall()
    assert doubled == []


def test_the_proxy_answers_in_a_process_with_many_open_files(mlflow_server: MlflowServer) -> None:
    """After hundreds of tests a process has more than the 1,024 files that select() can wait for."""
    with ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(Path(os.devnull).open())
        proxy = FaultyProxy(mlflow_server.port)
        stack.callback(proxy.close)
        assert urllib.request.urlopen(f"{proxy.address}/health", timeout=60).status == 200


def test_the_server_starts_no_job_processes(mlflow_server: MlflowServer) -> None:
    """They keep a small machine busy for many seconds after the first answer."""
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children(recursive=True)]
    assert any("uvicorn" in command for command in commands)
    assert not [command for command in commands if "mlflow.server.jobs" in command]


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[pytest.mark.slow] * (fault == "hang")) for fault in FAULTS]
)
def test_an_outage_during_a_run(
    server: TrackingServer,
    proxy: FaultyProxy,
    mlflow_server: MlflowServer,
    durations: list[float],
    fault: str,
) -> None:
    client = server.connect()
    terminal = RecordingTerminal()
    with track_run(server, client, RunRequest("outage", fault), terminal) as tracker:
        log_epoch(tracker, 1)
        wait_for(lambda: not tracker.journal.pending())
        proxy.set(fault)
        for step in (2, 3, 4):
            log_epoch(tracker, step)
        if fault == "refuse":
            wait_for(lambda: tracker.uploader.error is not None)
        else:
            wait_for(lambda: fault in proxy.met)
        log_epoch(tracker, 5)
        proxy.set("pass")
        log_epoch(tracker, 6)
    assert all("records wait on disk" in warning for warning in terminal.warnings)
    if fault == "refuse":
        assert "the tracking server does not answer" in terminal.warnings[0]
        assert "the tracking server is back" in terminal.lines[-1]
    assert max(durations) < MOST_WAITED
    check_complete(client, tracker.run_id, 6, mlflow_server.database)
    assert list(server.journals.iterdir()) == []


@pytest.mark.parametrize("fault", ["refuse", "500"])
def test_a_run_that_starts_in_an_outage_waits(
    server: TrackingServer,
    proxy: FaultyProxy,
    mlflow_server: MlflowServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    client, notes = server.connect(), []
    proxy.set(fault)

    class Repairing(RecordingTerminal):
        def warn(self, text: str) -> None:
            notes.append(text)
            proxy.set("pass")

    monkeypatch.setattr(server_outages, "Terminal", Repairing)
    with track_run(server, client, RunRequest("started in an outage", fault), RecordingTerminal()) as tracker:
        log_epoch(tracker, 1)
    assert len(notes) == 1
    assert "waiting up to 300 s for it" in notes[0]
    check_complete(client, tracker.run_id, 1, mlflow_server.database)


def test_after_a_run_that_ended_in_an_outage_sync_delivers(
    server: TrackingServer,
    proxy: FaultyProxy,
    mlflow_server: MlflowServer,
    durations: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(uploader, "UPLOAD_TIMEOUT", 2.0)
    client = server.connect()
    terminal = RecordingTerminal()
    with track_run(server, client, RunRequest("outage", "away at the end"), terminal) as tracker:
        log_epoch(tracker, 1)
        wait_for(lambda: not tracker.journal.pending())
        proxy.set("refuse")
        log_epoch(tracker, 2)
    warning = terminal.warnings[-1]
    assert "not all records could be delivered" in warning
    assert "./launch.sh sync" in warning
    assert max(durations) < MOST_WAITED
    set_owner(tracker.journal, dead_owner(server.uri, tracker.run_id))
    options = ["--tracking.root", str(server.root)]
    capsys.readouterr()
    assert run_main(lambda: sync.main(options)) == 2
    errors = capsys.readouterr().err
    assert errors.count("runner: ") == 1
    assert "does not answer" in errors
    assert "Traceback" not in errors
    proxy.set("lose the answer")
    threading.Timer(3, proxy.set, ["pass"]).start()
    wait_for(lambda: run_main(lambda: sync.main(options)) == 0)
    check_complete(client, tracker.run_id, 2, mlflow_server.database)
    assert [path for path in server.journals.iterdir() if path.is_dir()] == []


def test_a_run_is_created_once_even_if_the_answer_gets_lost(
    server: TrackingServer, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, calls = server.connect(), []
    create = client.create_run

    def lose_first_answer(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        proxy.set("lose the answer" if len(calls) == 1 else "pass")
        try:
            return create(*arguments, **named)
        finally:
            proxy.set("pass")

    monkeypatch.setattr(client, "create_run", lose_first_answer)
    with track_run(server, client, RunRequest("created once", "some"), QUIET) as tracker:
        assert proxy.met.count("lose the answer") == 1
    experiment = client.get_experiment_by_name("created once")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status, len(calls)) == (tracker.run_id, "FINISHED", 1)
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"


@pytest.mark.slow
def test_one_outage_after_another_and_a_server_that_restarts(
    server: TrackingServer,
    proxy: FaultyProxy,
    durations: list[float],
    mlflow_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    own = MlflowServer(tmp_path_factory.mktemp("own"), mlflow_template)
    own.start()
    try:
        proxy.server_port = own.port
        client = server.connect()
        step = 0
        with track_run(server, client, RunRequest("outage", "all of them"), QUIET) as tracker:
            for fault in (*FAULTS, "stop", *FAULTS):
                if fault == "stop":
                    own.stop()
                else:
                    proxy.set(fault)
                for _ in range(3):
                    log_epoch(tracker, step := step + 1)
                    time.sleep(0.3)
                if fault == "stop":
                    own.start()
                    proxy.server_port = own.port
                proxy.set("pass")
                log_epoch(tracker, step := step + 1)
                time.sleep(0.5)
        assert max(durations) < MOST_WAITED
        check_complete(client, tracker.run_id, step, own.database)
        assert list(server.journals.iterdir()) == []
    finally:
        own.stop()


@pytest.mark.slow
def test_training_through_outages(
    make: Make,
    accelerator: Accelerator,
    server: TrackingServer,
    proxy: FaultyProxy,
    durations: list[float],
    tmp_path: Path,
) -> None:
    experiment = make("--tracking.model", "true", "--tracking.gallery", "1", "--train.epochs", "6")
    client = server.connect()
    trained = threading.Event()

    def cause_outages() -> None:
        for fault in ("refuse", "lose the answer", "500", "slow") * 20:
            if trained.is_set():
                break
            proxy.set(fault)
            trained.wait(0.7)
            proxy.set("pass")
            trained.wait(0.7)
        proxy.set("pass")

    outages = threading.Thread(target=cause_outages)
    with track_run(server, client, RunRequest(experiment.name, "through outages"), QUIET) as tracker:
        outages.start()
        result = run.train(experiment, accelerator, tracker, QUIET)
        time.sleep(3)
        trained.set()
        outages.join()
    assert max(durations) < MOST_WAITED
    found = client.get_run(tracker.run_id)
    assert found.info.status == "FINISHED"
    history = result.history
    assert points(client, tracker.run_id, "val/loss") == [(each.number, each.val["loss"]) for each in history]
    assert points(client, tracker.run_id, "train/loss") == [
        (each.number, each.train_loss) for each in history
    ]
    (model,) = client.search_logged_models([found.info.experiment_id], f"source_run_id = '{tracker.run_id}'")
    assert model.status == "READY"
    assert len(client.search_model_versions(f"run_id = '{tracker.run_id}'")) == 1
    assert list(server.journals.glob("*/")) == []
    fetched = client.download_artifacts(tracker.run_id, "checkpoints", str(tmp_path))
    assert sorted(path.name for path in Path(fetched).iterdir()) == [
        *("best.safetensors", "frozen.safetensors", "last.safetensors")
    ]
