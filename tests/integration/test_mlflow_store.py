"""The tracking store: made once by several processes, refused when it cannot be used; what importing MLflow costs."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from stores import Store, open_store

from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.utils.console import Terminal

pytestmark = pytest.mark.usefixtures("no_tracking_uri")


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


@pytest.mark.slow
def test_mlflow_is_not_imported_before_it_is_needed() -> None:
    modules = "runner.training.seeds, runner.training.dry_run, runner.cli.evaluate"
    code = f"import sys, {modules}; print('mlflow' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.stdout == "False\n", outcome.stderr
