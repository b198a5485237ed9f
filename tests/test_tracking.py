"""The records of a run: journal, delivery, outages, dead processes, and the store that they go to."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.tracking import uploader
from runner.tracking.journal import Journal, Owner, birth, me, now_ms, this_host
from runner.tracking.mlflow_server import Server, server
from runner.tracking.tracker import MlflowTracker, tracked
from runner.tracking.uploader import Shipper, deliver, recover
from runner.utils.console import Terminal
from runner.utils.errors import Interrupted, UserError

EXPERIMENT = "tracking"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Any]]:
    """An embedded store and its client; one for all tests here, as creating its database takes seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        place = server(str(tmp_path_factory.mktemp("store")))
        yield place, place.connect()


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself sets the variable when it is told its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


class Stop:
    """A client's face: calls of the named methods go wrong while `failures` is above zero."""

    def __init__(self, client: Any, failures: int, names: tuple[str, ...], after: bool = False) -> None:
        self.client = client
        self.failures = failures
        self.names = names
        self.after = after
        """Fail when the call has been carried out: only the answer is lost."""

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)
        if name not in self.names:
            return real

        def call(*words: Any, **options: Any) -> Any:
            if self.failures > 0:
                self.failures -= 1
                if self.after:
                    real(*words, **options)
                raise ConnectionError("the server is away")
            return real(*words, **options)

        return call


class Listener:
    """A client that writes down what it is asked, and does nothing."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def log_batch(self, _run: str, metrics: Any, params: Any, tags: Any) -> None:
        self.heard += [f"param {each.key}" for each in params]
        self.heard += [f"metric {each.key} {each.step}" for each in metrics]
        self.heard += [f"tag {each.key}" for each in tags]

    def log_artifact(self, _run: str, path: str, folder: str | None) -> None:
        self.heard.append(f"artifact {folder}/{Path(path).name}")

    def log_inputs(self, _run: str, inputs: Any) -> None:
        self.heard.append(f"input {inputs[0].dataset.name}")

    def set_terminated(self, _run: str, status: str, _time: int) -> None:
        self.heard.append(f"end {status}")


class Heard(Terminal):
    """A terminal that keeps its notes and lines."""

    def __init__(self) -> None:
        super().__init__(speaks=False)
        self.notes: list[str] = []
        self.lines: list[str] = []

    def line(self, text: str, style: str | None = None) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.notes.append(text)


def new_run(store: tuple[Server, Any], **tags: str) -> str:
    """A run that is RUNNING in MLflow and has no journal."""
    place, client = store
    return str(client.create_run(place.experiment_id(client, EXPERIMENT), tags=tags).info.run_id)


def dead() -> tuple[int, float]:
    """Process id and creation time of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    started = birth(process.pid)
    process.communicate(b"\n")
    return process.pid, started


def journal_of_dead(store: tuple[Server, Any], run_id: str) -> Journal:
    """An empty journal whose owner was a process of this host."""
    place, _ = store
    pid, started = dead()
    return Journal.create(place.root / "journals", Owner(place.uri, run_id, this_host(), pid, started))


def metric(name: str, value: float, step: int = 0) -> dict[str, Any]:
    return {"kind": "metrics", "step": step, "time": now_ms(), "values": {name: value}}


def points(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    """Step and value of a curve's points, in the order of the steps; a doubled point is there twice."""
    history = client.get_metric_history(run_id, name)
    return sorted((each.step, each.value) for each in history)


def artifacts(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    return sorted(each.path for each in client.list_artifacts(run_id, folder))


def journals(place: Server) -> list[str]:
    return sorted(path.name for path in (place.root / "journals").glob("*") if path.is_dir())


def test_everything_arrives_once(store: tuple[Server, Any], silent: Terminal) -> None:
    place, client = store
    with tracked(place, client, EXPERIMENT, "whole", silent) as tracker:
        run_id = tracker.run_id
        tracker.params({"train.epochs": 3, "optim.lr": 1e-3, "model.weights": None})
        tracker.tags({"runner.manifest": "abc"})
        tracker.dataset("pictures", "0123abcd", "/data/pictures", '{"images": 36}')
        tracker.text("experiment.yaml", "name: small\n")
        for step in (1, 2, 3):
            tracker.metrics({"train/loss": 1 / step, "lr": 0.5}, step)
        picture = tracker.stage("figures/loss.png")
        picture.write_bytes(b"a picture")
        tracker.artifact(picture, "figures")
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
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest, used.dataset.source) == (
        "pictures",
        "0123abcd",
        "/data/pictures",
    )
    assert run_id not in journals(place), "the journal goes when all is delivered"


def test_an_artifact_keeps_its_content(store: tuple[Server, Any], silent: Terminal, tmp_path: Path) -> None:
    place, client = store
    with tracked(place, client, EXPERIMENT, "content", silent) as tracker:
        tracker.text("manifest.csv", "path,class\nä.png,été\n")
    fetched = client.download_artifacts(tracker.run_id, "manifest.csv", str(tmp_path))
    assert Path(fetched).read_text(encoding="utf-8") == "path,class\nä.png,été\n"


def test_events_are_delivered_in_their_order(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, me("nowhere", "run"))
    file = journal.stage("figures/loss.png")
    file.write_text("x")
    journal.append({"kind": "params", "values": {"a": "1"}})
    journal.append(metric("loss", 2.0, 1))
    journal.append({"kind": "artifact", "file": "figures/loss.png", "folder": "figures"})
    journal.append(metric("loss", 1.0, 2))
    journal.append({"kind": "input", "name": "data", "digest": "d", "source": "s", "profile": "{}"})
    journal.append({"kind": "tags", "values": {"note": "n"}})
    assert deliver(journal, listener := Listener()) is False  # type: ignore[arg-type]
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    assert deliver(journal, listener) is True  # type: ignore[arg-type]
    assert listener.heard == [
        *("param a", "metric loss 1", "artifact figures/loss.png", "metric loss 2", "input data"),
        *("tag note", "end FINISHED"),
    ]
    assert journal.pending() == []


def test_a_run_is_a_child_of_its_parent(store: tuple[Server, Any], silent: Terminal) -> None:
    place, client = store
    with (
        tracked(place, client, EXPERIMENT, "parent", silent) as parent,
        tracked(place, client, EXPERIMENT, "child", silent, parent.run_id) as child,
    ):
        pass
    assert client.get_run(child.run_id).data.tags["mlflow.parentRunId"] == parent.run_id
    assert client.get_run(child.run_id).info.run_name == "child"


@pytest.mark.parametrize(
    ("failure", "status", "reason"),
    [
        (UserError("The disk is too small."), "FAILED", "The disk is too small."),
        (ZeroDivisionError("by zero"), "FAILED", "ZeroDivisionError: by zero"),
        (Interrupted(signal.SIGTERM), "KILLED", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "KILLED", "stopped by SIGINT"),
    ],
)
def test_a_run_tells_how_it_ended(
    store: tuple[Server, Any], silent: Terminal, failure: BaseException, status: str, reason: str
) -> None:
    place, client = store
    begun: list[str] = []

    def fail() -> None:
        with tracked(place, client, EXPERIMENT, "ends badly", silent) as tracker:
            begun.append(tracker.run_id)
            tracker.metrics({"loss": 1.0}, 1)
            raise failure

    with pytest.raises(type(failure)):
        fail()
    run = client.get_run(begun[0])
    assert run.info.status == status
    assert run.data.tags["runner.reason"] == reason
    assert points(client, begun[0], "loss") == [(1, 1.0)], "what came before is kept"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none_becomes_a_note(
    store: tuple[Server, Any], silent: Terminal, value: float
) -> None:
    place, client = store
    with tracked(place, client, EXPERIMENT, "not a number", silent) as tracker:
        tracker.metrics({"train/loss": value, "lr": 0.1}, 7)
    run = client.get_run(tracker.run_id)
    assert "train/loss" not in run.data.metrics
    assert points(client, tracker.run_id, "lr") == [(7, 0.1)]
    assert run.data.tags["runner.train/loss"] == f"{value} at step 7"
    assert run.info.status == "FINISHED"


def test_more_points_than_a_request_holds(store: tuple[Server, Any]) -> None:
    """After an outage a batch may hold more than the 1,000 points that MLflow takes at once."""
    _, client = store
    journal = journal_of_dead(store, new_run(store))
    for step in range(uploader.BATCH + 5):
        values = {f"system/{number}": float(step) for number in range(12)}
        journal.append({"kind": "metrics", "step": step, "time": now_ms(), "values": values})
    deliver(journal, client)
    run_id = journal.owner.run_id
    expected = [(step, float(step)) for step in range(uploader.BATCH + 5)]
    assert points(client, run_id, "system/0") == expected
    assert points(client, run_id, "system/11") == expected
    assert "runner.refused" not in client.get_run(run_id).data.tags
    journal.remove()
    client.set_terminated(run_id)


@pytest.mark.parametrize("after", [False, True], ids=["request lost", "answer lost"])
def test_an_outage_loses_and_doubles_nothing(
    store: tuple[Server, Any], silent: Terminal, after: bool
) -> None:
    place, client = store
    names = ("log_batch", "log_inputs", "log_artifact", "set_terminated")
    away = Stop(client, 3, names, after)
    with tracked(place, away, EXPERIMENT, "outage", silent) as tracker:  # type: ignore[arg-type]
        tracker.params({"a": 1})
        for step in range(1, 21):
            tracker.metrics({"loss": float(step)}, step)
        tracker.dataset("pictures", "digest", "source", "{}")
        tracker.text("note.txt", "hello")
    assert away.failures == 0, "the outage took place"
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1"}
    assert points(client, tracker.run_id, "loss") == [(step, float(step)) for step in range(1, 21)]
    assert len(run.inputs.dataset_inputs) == 1
    assert artifacts(client, tracker.run_id) == ["note.txt"]
    assert tracker.run_id not in journals(place)


def test_an_outage_until_the_end_is_made_up_for_later(
    store: tuple[Server, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    place, client = store
    monkeypatch.setattr(uploader, "LAST_PATIENCE", 1.0)
    away = Stop(client, 10**9, ("log_batch", "log_inputs", "log_artifact", "set_terminated"))
    terminal = Heard()
    began = time.monotonic()
    with tracked(place, away, EXPERIMENT, "away", terminal) as tracker:  # type: ignore[arg-type]
        tracker.metrics({"loss": 0.5}, 1)
        tracker.text("note.txt", "hello")
        assert time.monotonic() - began < 5, "recording does not wait for the server"
    run_id = tracker.run_id
    assert run_id in journals(place)
    assert "records wait on disk" in terminal.notes[0]
    assert str(place.root / "journals" / run_id) in terminal.notes[-1]
    assert client.get_run(run_id).info.status == "RUNNING"

    recover(place, client, terminal)
    assert client.get_run(run_id).info.status == "RUNNING", "its process, this one, is alive"
    pid, started = dead()
    owner = {
        **json.loads((tracker.journal.folder / "owner.json").read_text()),
        "pid": pid,
        "started": started,
    }
    (tracker.journal.folder / "owner.json").write_text(json.dumps(owner))
    recover(place, client, terminal)
    recover(place, client, terminal)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED", "it did finish: only its records were late"
    assert "runner.reason" not in run.data.tags
    assert points(client, run_id, "loss") == [(1, 0.5)]
    assert artifacts(client, run_id) == ["note.txt"]
    assert run_id not in journals(place)


def test_a_delivery_that_was_not_marked_is_repeated_without_harm(store: tuple[Server, Any]) -> None:
    _, client = store
    run_id = new_run(store)
    journal = journal_of_dead(store, run_id)
    note = journal.stage("note.txt")
    note.write_text("hello")
    journal.append({"kind": "params", "values": {"a": "1"}})
    journal.append(metric("loss", 2.0, 1))
    journal.append(metric("loss", 1.0, 2))
    journal.append({"kind": "input", "name": "data", "digest": "d", "source": "s", "profile": "{}"})
    journal.append({"kind": "artifact", "file": "note.txt", "folder": ""})
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    assert deliver(journal, client)
    (journal.folder / "sent").unlink()  # as if the process had died before it marked anything
    assert deliver(journal, client)
    run = client.get_run(run_id)
    assert points(client, run_id, "loss") == [(1, 2.0), (2, 1.0)]
    assert run.data.params == {"a": "1"}
    assert len(run.inputs.dataset_inputs) == 1
    assert artifacts(client, run_id) == ["note.txt"]
    assert "runner.refused" not in run.data.tags
    journal.remove()


def test_only_what_is_pending_is_sent(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, me("nowhere", "run"))
    journal.append(metric("loss", 2.0, 1))
    deliver(journal, first := Listener())  # type: ignore[arg-type]
    journal.append(metric("loss", 1.0, 2))
    again = Journal.find(tmp_path)[0]  # as another process reads it from disk
    deliver(again, second := Listener())  # type: ignore[arg-type]
    assert first.heard == ["metric loss 1"]
    assert second.heard == ["metric loss 2"]


def test_an_event_in_mid_writing_waits(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, me("nowhere", "run"))
    journal.append(metric("loss", 2.0, 1))
    line = json.dumps(metric("loss", 1.0, 2)) + "\n"
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write(line[:20])
        file.flush()
        deliver(journal, listener := Listener())  # type: ignore[arg-type]
        assert listener.heard == ["metric loss 1"]
        file.write(line[20:])
    deliver(journal, listener)  # type: ignore[arg-type]
    assert listener.heard == ["metric loss 1", "metric loss 2"]


def test_a_torn_line_of_a_dead_process_is_cut_off(store: tuple[Server, Any]) -> None:
    place, client = store
    run_id = new_run(store)
    journal = journal_of_dead(store, run_id)
    journal.append(metric("loss", 2.0, 1))
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "metrics", "step": 2, "ti')
    recover(place, client, terminal := Heard())
    run = client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["runner.reason"] == "its process died without a word"
    assert points(client, run_id, "loss") == [(1, 2.0)]
    assert run_id not in journals(place)
    assert any(run_id in note for note in terminal.notes)


def test_a_torn_end_is_no_end(store: tuple[Server, Any]) -> None:
    place, client = store
    run_id = new_run(store)
    journal = journal_of_dead(store, run_id)
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    events = journal.folder / "events.jsonl"
    os.truncate(events, events.stat().st_size - 3)
    recover(place, client, Heard())
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_journal_without_events_is_closed(store: tuple[Server, Any]) -> None:
    place, client = store
    run_id = new_run(store)
    journal_of_dead(store, run_id)
    recover(place, client, Heard())
    assert client.get_run(run_id).info.status == "KILLED"
    assert run_id not in journals(place)


def test_a_folder_that_is_no_journal_yet_does_no_harm(store: tuple[Server, Any]) -> None:
    place, client = store
    half = place.root / "journals" / "half"
    half.mkdir(parents=True)
    (half / "owner.json").write_text('{"uri": "sq')
    run_id = new_run(store)
    journal_of_dead(store, run_id)
    recover(place, client, Heard())
    assert client.get_run(run_id).info.status == "KILLED", "the others are seen to"
    assert half.exists()


def test_journals_of_another_store_are_left_alone(store: tuple[Server, Any]) -> None:
    place, client = store
    pid, started = dead()
    owner = Owner("https://elsewhere.example", "their-run", this_host(), pid, started)
    journal = Journal.create(place.root / "journals", owner)
    recover(place, client, Heard())
    assert journal.folder.exists()
    assert not (journal.folder / "events.jsonl").exists()
    journal.remove()


def test_journals_of_another_host_are_left_alone(store: tuple[Server, Any]) -> None:
    place, client = store
    run_id = new_run(store)
    pid, started = dead()
    journal = Journal.create(place.root / "journals", Owner(place.uri, run_id, "another-host", pid, started))
    recover(place, client, Heard())
    assert client.get_run(run_id).info.status == "RUNNING"
    assert journal.folder.exists()
    journal.remove()
    client.set_terminated(run_id)


def test_runs_without_a_journal_are_closed_when_their_process_is_dead(store: tuple[Server, Any]) -> None:
    place, client = store
    pid, started = dead()

    def of(host: str, pid: int, started: float) -> str:
        tags = {"runner.host": host, "runner.pid": str(pid), "runner.started": str(started)}
        return new_run(store, **tags)

    here = this_host()
    living = psutil.Process()
    gone = of(here, pid, started)
    recycled = of(here, living.pid, birth(living.pid) - 5000)
    alive = of(here, living.pid, birth(living.pid))
    elsewhere = of("another-host", pid, started)
    foreign = new_run(store)  # some other program's
    recover(place, client, terminal := Heard())
    states = {each: client.get_run(each).info.status for each in (gone, recycled, alive, elsewhere, foreign)}
    assert states == {
        gone: "KILLED",
        recycled: "KILLED",
        alive: "RUNNING",
        elsewhere: "RUNNING",
        foreign: "RUNNING",
    }
    assert client.get_run(gone).data.tags["runner.reason"] == "its process died without a word"
    assert len(terminal.notes) == 2
    for each in (alive, elsewhere, foreign):
        client.set_terminated(each)


def test_records_that_cannot_be_delivered_yet_stay(store: tuple[Server, Any]) -> None:
    place, client = store
    run_id = new_run(store)
    journal = journal_of_dead(store, run_id)
    journal.append(metric("loss", 2.0, 1))
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    away = Stop(client, 10**9, ("log_batch",))
    recover(place, away, terminal := Heard())  # type: ignore[arg-type]
    assert run_id in journals(place)
    assert "could not be delivered yet" in terminal.notes[0]
    recover(place, client, Heard())
    assert points(client, run_id, "loss") == [(1, 2.0)]
    assert client.get_run(run_id).info.status == "FINISHED"
    assert run_id not in journals(place)


def test_a_refused_event_is_noted_and_does_not_hold_the_others_up(store: tuple[Server, Any]) -> None:
    _, client = store
    run_id = new_run(store)
    journal = journal_of_dead(store, run_id)
    file = journal.stage("note.txt")
    file.write_text("hello")
    journal.append({"kind": "params", "values": {"a": "1"}})
    journal.append({"kind": "artifact", "file": str(file), "folder": ""})
    journal.append({"kind": "params", "values": {"a": "another value, which MLflow refuses"}})
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    assert deliver(journal, client)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1"}
    assert "not allowed" in run.data.tags["runner.refused"]
    journal.remove()


def test_a_refused_event_takes_no_other_with_it(store: tuple[Server, Any]) -> None:
    _, client = store
    run_id = new_run(store)
    journal = journal_of_dead(store, run_id)
    journal.append({"kind": "params", "values": {"a": "1"}})
    deliver(journal, client)
    journal.append(metric("loss", 2.0, 1))
    journal.append({"kind": "params", "values": {"a": "another value, which MLflow refuses"}})
    journal.append(metric("loss", 1.0, 2))
    deliver(journal, client)
    assert points(client, run_id, "loss") == [(1, 2.0), (2, 1.0)]
    journal.remove()
    client.set_terminated(run_id)


def test_the_journal_of_a_deleted_run_is_not_tried_for_ever(store: tuple[Server, Any]) -> None:
    place, client = store
    run_id = new_run(store)
    journal = journal_of_dead(store, run_id)
    journal.append(metric("loss", 2.0, 1))
    client.delete_run(run_id)
    recover(place, client, Heard())
    assert run_id not in journals(place)


def test_a_full_disk_does_not_spoil_the_journal(tmp_path: Path) -> None:
    """What a failed append leaves behind must not merge with the event after it."""
    journal = Journal.create(tmp_path, me("nowhere", "run"))
    journal.append(metric("loss", 3.0, 1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, ((journal.folder / "events.jsonl").stat().st_size + 10, before[1])
    )
    try:
        with pytest.raises(OSError, match="too large"):
            journal.append(metric("loss", 2.0, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    journal.append(metric("loss", 1.0, 3))
    assert [event["step"] for _, event in journal.pending()] == [1, 3]


def test_the_shipper_waits_no_longer_than_its_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "LAST_PATIENCE", 0.3)
    journal = Journal.create(tmp_path, me("nowhere", "run"))
    thread = Shipper(journal, Stop(Listener(), 10**9, ("set_terminated",)))  # type: ignore[arg-type]
    thread.start()
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    began = time.monotonic()
    assert thread.close() is False
    assert time.monotonic() - began < 5
    assert isinstance(thread.fault, ConnectionError)


def test_a_tracker_delivers_while_the_run_goes_on(store: tuple[Server, Any], silent: Terminal) -> None:
    place, client = store
    tracker = MlflowTracker(place, client, new_run(store), "goes on")
    tracker.metrics({"loss": 1.0}, 1)
    deadline = time.monotonic() + 20
    while not client.get_metric_history(tracker.run_id, "loss") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert points(client, tracker.run_id, "loss") == [(1, 1.0)]
    assert client.get_run(tracker.run_id).info.status == "RUNNING"
    tracker.end("FINISHED", "", silent)
    assert client.get_run(tracker.run_id).info.status == "FINISHED"


def test_system_metrics_are_recorded(
    store: tuple[Server, Any], silent: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.tracking.tracker.SYSTEM_INTERVAL", 0.1)
    place, client = store
    with tracked(place, client, EXPERIMENT, "watched", silent, system_metrics=True) as tracker:
        time.sleep(2)
    names = [name for name in client.get_run(tracker.run_id).data.metrics if name.startswith("system/")]
    assert "system/cpu_utilization_percentage" in names
    steps = [step for step, _ in points(client, tracker.run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert len(steps) > 1


def test_a_deleted_experiment_comes_back(store: tuple[Server, Any]) -> None:
    place, client = store
    first = place.experiment_id(client, "comes back")
    client.delete_experiment(first)
    assert place.experiment_id(client, "comes back") == first
    assert client.get_experiment(first).lifecycle_stage == "active"


def test_artifacts_lie_in_the_stores_own_folder(store: tuple[Server, Any]) -> None:
    place, client = store
    found = client.get_experiment(place.experiment_id(client, "with a blank"))
    assert found.artifact_location == (place.root / "artifacts" / "with a blank").as_uri()


def connect_and_record(root: str, number: int, answers: Any) -> None:
    """What each of several processes does with a fresh store."""
    try:
        place = server(root)
        client = place.connect()
        with tracked(place, client, "crowd", f"run {number}", Terminal(speaks=False)) as tracker:
            tracker.metrics({"number": float(number)}, 1)
        answers.put(tracker.run_id)
    except BaseException as error:
        answers.put(f"{type(error).__name__}: {error}")


@pytest.mark.slow
def test_four_processes_create_one_store(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    crowd = [
        spawn.Process(target=connect_and_record, args=(str(tmp_path / "fresh"), number, answers))
        for number in range(4)
    ]
    for each in crowd:
        each.start()
    said = [answers.get(timeout=200) for _ in crowd]
    for each in crowd:
        each.join(30)
    assert [each.exitcode for each in crowd] == [0] * 4
    place = server(str(tmp_path / "fresh"))
    client = place.connect()
    assert sorted(client.get_run(run_id).data.metrics["number"] for run_id in said) == [0, 1, 2, 3]
    assert {client.get_run(run_id).info.status for run_id in said} == {"FINISHED"}
    assert len([each for each in client.search_experiments() if each.name == "crowd"]) == 1
    with sqlite3.connect(tmp_path / "fresh" / "mlflow.db") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.fixture
def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_out_of_reach_is_refused_in_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}/")
    place = server(str(tmp_path))
    assert not place.embedded
    began = time.monotonic()
    with pytest.raises(UserError, match=f"127.0.0.1:{closed_port} does not answer"):
        place.connect()
    assert time.monotonic() - began < 5
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_refused_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.tracking.mlflow_server.PATIENCE", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        place = Server(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path)
        began = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            place.connect()
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("uri", ["http://local host:5000", "http://127.0.0.1:port"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError):
        Server(uri, tmp_path).connect()


@pytest.mark.parametrize("uri", ["/data/mlruns", "mlruns", "./mlruns", "file:///data/mlruns"])
def test_a_folder_is_no_tracking_store(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        server("mlruns")


def test_the_store_that_the_environment_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example/")
    place = server(str(tmp_path))
    assert (place.uri, place.root, place.embedded) == ("https://tracking.example", tmp_path, False)


def test_the_embedded_store_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    place = server("mlruns")
    assert place.uri == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    assert place.embedded


def test_two_stores_in_one_process(store: tuple[Server, Any], tmp_path: Path) -> None:
    """Connecting to one store must not decide where the next one is."""
    _, client = store
    assert client is not None
    store[0].connect()
    assert server(str(tmp_path / "other")).uri == f"sqlite:///{tmp_path / 'other' / 'mlflow.db'}"


WATCH = """
import importlib.abc, os, sys, pathlib
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "mlflow":
            print(os.environ.get("MLFLOW_DISABLE_TELEMETRY"), os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION"))
            sys.stdout.flush()
            os._exit(0)
sys.meta_path.insert(0, Watch())
from runner.server import server
server(sys.argv[1]).connect()
"""


def test_telemetry_and_pickles_are_off_before_mlflow_is_imported(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    outcome = subprocess.run(
        [sys.executable, "-c", WATCH, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert outcome.stdout == "true false\n", outcome.stderr


def test_nothing_imports_mlflow_before_it_is_connected_to() -> None:
    modules = "runner.training.seeds, runner.training.dry_run, runner.cli.evaluate"
    code = f"import sys, {modules}; print('mlflow' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert outcome.stdout == "False\n"


def test_an_owner_is_known_by_more_than_its_process_id() -> None:
    owner = me("uri", "run")
    assert owner.alive
    assert not replace(owner, started=owner.started - 100).alive
    assert replace(owner, started=owner.started - 100, host="another-host").alive


def test_appending_from_many_threads_tears_no_line(tmp_path: Path) -> None:
    import threading

    journal = Journal.create(tmp_path, me("nowhere", "run"))

    def write(thread: int) -> Callable[[], None]:
        return lambda: [journal.append(metric("m" * 500, thread, step)) for step in range(20)] and None

    threads = [threading.Thread(target=write(number)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    seen = [(event["values"]["m" * 500], event["step"]) for _, event in journal.pending()]
    assert len(seen) == 80
    assert set(seen) == {(thread, step) for thread in range(4) for step in range(20)}
    for number in range(4):
        assert [step for thread, step in seen if thread == number] == list(range(20))
