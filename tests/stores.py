"""MLflow stores, runs and journals as tests need them, and stand-ins for an MLflow client."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Any

import pytest

from runner.tracking.interrupted_runs import STATE_FOLDER, RunRecord, write_record
from runner.tracking.journal import Event, Journal, Owner, now_ms
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.tracking.mlflow_tracker import MlflowTracker
from runner.tracking.process_identity import ProcessIdentity, this_host
from runner.utils.console import Terminal

EXPERIMENT = "tracking"
Store = tuple[TrackingServer, Any]
"""A tracking server and its client."""
Track = Callable[..., AbstractContextManager[MlflowTracker]]
"""Starts a run in a store, given its name."""
DEAD = ProcessIdentity(this_host(), (1 << 22) + 1, 1.0)
"""A process of this host that does not run: Linux gives no process so high an id."""


# Stores


def open_store(root: Path) -> Store:
    """The store embedded in a folder, created if there is none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        server = tracking_server(str(root))
        return server, server.connect()


def create_store(root: Path) -> None:
    """Create a store without runs. Takes seconds: tests copy `mlflow_template`."""
    open_store(root)


def copy_store(database: Path, root: Path) -> Path:
    """Copy an MLflow database to a folder, which is returned."""
    root.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(root / "mlflow.db")) as target:
        source.backup(target)
    return root


def new_run(store: Store, **tags: str) -> str:
    """Id of a run that is RUNNING in MLflow and has no journal."""
    server, client = store
    experiment = server.get_or_create_experiment(client, EXPERIMENT)
    return str(client.create_run(experiment, tags=tags).info.run_id)


def status(client: Any, run_id: str) -> str:
    return str(client.get_run(run_id).info.status)


def points(client: Any, run_id: str, name: str) -> list[tuple[int, float]]:
    """Step and value of a metric's points, by step. A point that is stored twice is there twice."""
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def artifacts(client: Any, run_id: str, folder: str | None = None) -> list[str]:
    return sorted(artifact.path for artifact in client.list_artifacts(run_id, folder))


# Journals


def journals(server: TrackingServer) -> list[str]:
    """The names of the journals' folders."""
    return sorted(path.name for path in server.journals.glob("*") if path.is_dir())


def dead_owner(uri: str, run_id: str) -> Owner:
    """A process of this host that has ended, as the owner of a run."""
    return Owner(**dataclasses.asdict(DEAD), uri=uri, run_id=run_id)


def journal_of_dead_process(store: Store, run_id: str) -> Journal:
    """An empty journal whose owner has ended."""
    server, _ = store
    return Journal.create(server.journals, dead_owner(server.uri, run_id))


def set_owner(journal: Journal, owner: Owner) -> None:
    """Change the owner of a journal on disk."""
    (journal.folder / "owner.json").write_text(json.dumps(dataclasses.asdict(owner)))


def resumable(journal: Journal, requested: dict[str, Any] | None = None, **record: Any) -> Journal:
    """The journal, with a record from which its run could be resumed."""
    write_record(journal.folder / STATE_FOLDER, RunRecord("some run", requested or {}, **record))
    return journal


def metric(name: str, value: float, step: int = 0) -> Event:
    return {"kind": "metrics", "step": step, "time": now_ms(), "values": {name: value}}


def end(status: str = "FINISHED") -> Event:
    return {"kind": "end", "status": status, "time": now_ms()}


# Stand-ins


UPLOADS = ("log_batch", "log_inputs", "log_artifact", "set_terminated")
"""Methods of an MLflow client that change a run."""


class FailingClient:
    """A client whose named methods raise ConnectionError for the first `failures` calls.

    With `after` the call is carried out first: only its answer is lost.
    """

    def __init__(self, client: Any, failures: int, names: tuple[str, ...], after: bool = False) -> None:
        self.client = client
        self.failures = failures
        self.names = names
        self.after = after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)
        if name not in self.names:
            return real

        def call(*args: Any, **named: Any) -> Any:
            if self.failures > 0:
                self.failures -= 1
                if self.after:
                    real(*args, **named)
                raise ConnectionError("the server is away")
            return real(*args, **named)

        return call


class RecordingClient:
    """A client that does nothing but list what it was asked to upload."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def log_batch(self, _run: str, metrics: Any, params: Any, tags: Any) -> None:
        self.calls += [f"param {param.key}" for param in params]
        self.calls += [f"metric {point.key} {point.step}" for point in metrics]
        self.calls += [f"tag {tag.key}" for tag in tags]

    def log_artifact(self, _run: str, path: str, folder: str | None) -> None:
        self.calls.append(f"artifact {folder}/{Path(path).name}")

    def log_inputs(self, _run: str, inputs: Any) -> None:
        self.calls.append(f"input {inputs[0].dataset.name}")

    def set_terminated(self, _run: str, status: str, _time: int) -> None:
        self.calls.append(f"end {status}")


class RecordingTerminal(Terminal):
    """A terminal that prints nothing and stores its lines and warnings."""

    def __init__(self) -> None:
        super().__init__(enabled=False)
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def line(self, text: str = "", style: str | None = None) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until a condition holds; long enough for a busy machine."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)
