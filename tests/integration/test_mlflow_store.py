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
from urllib.parse import unquote, urlsplit

import pytest
from stores import Store, copy_store, open_store

from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.utils.console import Terminal
from runner.utils.errors import UserError

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


@pytest.mark.parametrize("folder", ["what?", "a#b?c", "run%20a"])
def test_a_store_in_a_folder_of_any_name(
    mlflow_template: Path, tmp_path: Path, folder: str, silent: Terminal
) -> None:
    server, client = open_store(copy_store(mlflow_template, tmp_path / folder / "mlruns"))
    with track_run(server, client, RunRequest("odd #1", "run"), silent) as tracker:
        tracker.log_metrics({"loss": 0.5}, 1)
        tracker.log_text("a.txt", "hello")
    assert tracker.delivered
    assert client.get_run(tracker.run_id).data.metrics == {"loss": 0.5}
    path = client.download_artifacts(tracker.run_id, "a.txt", str(tmp_path))
    assert Path(path).read_text() == "hello"
    assert [each.name for each in tmp_path.iterdir() if each.is_dir()] == [folder]
    experiment = client.get_run(tracker.run_id).info.experiment_id
    assert client.get_experiment(experiment).name == "odd #1"


def test_a_database_is_created_in_a_folder_of_any_name(tmp_path: Path) -> None:
    root = tmp_path / "100%20 #a?b=c&d"
    open_store(root)
    assert (root / "mlflow.db").stat().st_size > 0
    assert list(tmp_path.iterdir()) == [root]


def test_an_address_may_have_options_and_be_relative(
    mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_store(mlflow_template, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db?timeout=60")
    server = tracking_server("elsewhere")
    assert server.uri == f"sqlite:///{tmp_path}/mlflow.db?timeout=60"
    assert server.connect().search_experiments()
    assert not [path for path in tmp_path.iterdir() if "?" in path.name]


def test_a_path_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"caf\\xe9/mlruns.*UTF-8.*--tracking.root"):
        tracking_server(str(tmp_path / "caf\udce9" / "mlruns"))


def test_an_experiment_may_have_a_long_name(store: Store) -> None:
    server, client = store
    name = "类" * 90
    first = client.get_experiment(server.get_or_create_experiment(client, name))
    second = client.get_experiment(server.get_or_create_experiment(client, f"{name}2"))
    assert first.name == name
    folders = {Path(unquote(urlsplit(each.artifact_location).path)) for each in (first, second)}
    assert len(folders) == 2
    for folder in folders:
        folder.mkdir(parents=True)
        assert folder.parent == server.root / "artifacts"


def test_without_a_write_ahead_log_on_a_network_file_system(
    mlflow_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = copy_store(mlflow_template, tmp_path / "mlruns")
    server = tracking_server(str(root))

    def mode(change: str = "") -> str:
        with closing(sqlite3.connect(root / "mlflow.db")) as database:
            return str(database.execute(f"PRAGMA journal_mode{change}").fetchone()[0])

    assert (mode("=WAL"), server.warning) == ("wal", "")
    monkeypatch.setattr("runner.tracking.mlflow_server.network_file_system", lambda _: "nfs4")
    server.connect()
    assert mode() == "delete"
    assert "network file system (nfs4)" in server.warning
    assert "MLFLOW_TRACKING_URI" in server.warning


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
    modules = "runner.training.repeated, runner.training.dry_run, runner.cli.evaluate"
    code = f"import sys, {modules}; print('mlflow' in sys.modules)"
    outcome = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert outcome.stdout == "False\n", outcome.stderr
