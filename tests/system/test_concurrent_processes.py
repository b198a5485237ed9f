"""Several processes at once with one tracking root and one cache: everything is logged and computed once."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cached_features import cached_keys
from commands import COMMAND_TIMEOUT, RUNNER, environment, one_sentence, runner, started
from consistency import inconsistencies
from pictures import small_experiment
from stores import copy_store

EPOCHS = 150
"""Of runs that are killed, and then resumed to their end."""
ENDLESS = ("--train.epochs", "100000", "--schedule.kind", "constant")
STAGES = 2
"""Stages of the frozen backbone whose features are cached."""


@pytest.fixture
def options(images: Path, mlflow_template: Path, tmp_path: Path) -> list[str]:
    """The settings of the small experiment, with an empty store and a cache in `tmp_path`/shared."""
    folder = tmp_path / "shared"
    root = copy_store(mlflow_template, folder / "mlruns")
    return [*small_experiment(images, folder / "cache", root), "--features.compile", "false"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The tracking root of these settings."""
    return tmp_path / "shared" / "mlruns"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """The cache of these settings."""
    return tmp_path / "shared" / "cache"


def training(options: list[str]) -> list[str]:
    """The command line of a training process."""
    return [sys.executable, str(RUNNER / "train.py"), *options]


def run_at_once(*commands: list[str]) -> list[tuple[int, str, str]]:
    """Run commands side by side: status, output and errors of each."""
    processes = [
        subprocess.Popen(
            command,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        for command in commands
    ]
    printed = [process.communicate(timeout=COMMAND_TIMEOUT) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]


def check_all_succeed(*commands: list[str]) -> None:
    for status, _, errors in run_at_once(*commands):
        assert status == 0, errors
        assert "Traceback" not in errors


def query(root: Path, question: str) -> list[Any]:
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return connection.execute(question).fetchall()


def statuses(root: Path) -> list[str]:
    return sorted(status for (status,) in query(root, "SELECT status FROM runs"))


def curves(root: Path) -> list[list[tuple[str, int, float]]]:
    """What each finished run logged, without times."""
    found: dict[str, list[tuple[str, int, float]]] = {}
    for run, *point in query(
        root,
        "SELECT r.run_uuid, m.key, m.step, m.value FROM metrics m JOIN runs r ON m.run_uuid = r.run_uuid"
        " WHERE r.status = 'FINISHED' AND (m.key LIKE 'train/%' OR m.key LIKE 'val/%' OR m.key LIKE 'test/%'"
        " OR m.key = 'lr') ORDER BY 1, 2, 3",
    ):
        found.setdefault(run, []).append(tuple(point))
    return list(found.values())


def epochs_of(curve: list[tuple[str, int, float]]) -> int:
    return len({step for name, step, _ in curve if name == "val/loss"})


@pytest.mark.parametrize("count", [2, pytest.param(5, marks=pytest.mark.long)])
def test_identical_runs_at_once(options: list[str], root: Path, cache: Path, count: int) -> None:
    check_all_succeed(*[training([*options, "--tracking.model", "true"])] * count)
    assert statuses(root) == ["FINISHED"] * count
    first, *others = curves(root)
    assert epochs_of(first) == 3
    assert others == [first] * (count - 1)
    keys = cached_keys(cache)
    assert len(keys) == len(set(keys)) == STAGES * (2 * 18 + 9 + 9), "all features are computed once"
    versions = query(root, "SELECT version FROM model_versions ORDER BY 1")
    assert versions == [(number,) for number in range(1, count + 1)]
    aliases = query(root, "SELECT alias FROM registered_model_aliases ORDER BY 1")
    assert [alias.partition("-")[0] for (alias,) in aliases] == ["champion"] * 2, (
        "of all images, and of these"
    )
    assert inconsistencies(root, cache) == []
    assert list((root / "journals").glob("*/")) == []


@pytest.mark.slow
def test_a_run_and_a_study_at_once(options: list[str], root: Path, cache: Path, tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: {low: 1e-4, high: 0.1, log: true}\n")
    study = ("--study", "some", "--space", str(space), "--trials", "3", "--pruner", "none", "--confirm", "0")
    check_all_succeed(training(options), runner("search", *study, *options))
    assert set(statuses(root)) == {"FINISHED"}
    assert len(statuses(root)) == 1 + 1 + 3, "the run, the study, its trials"
    assert inconsistencies(root, cache) == []
    keys = cached_keys(cache)
    assert len(keys) == len(set(keys))


# Stores that are created by several processes

CREATE_STORE = """
import sys
from runner.tracking.mlflow_server import tracking_server
server = tracking_server(sys.argv[1])
client = server.connect()
run = client.create_run(server.get_or_create_experiment(client, "small"))
client.set_terminated(run.info.run_id)
"""


@pytest.mark.parametrize("count", [3, pytest.param(12, marks=pytest.mark.long)])
def test_processes_that_create_a_store_at_once(tmp_path: Path, count: int) -> None:
    root = tmp_path / "deep" / "mlruns"
    check_all_succeed(*[[sys.executable, "-c", CREATE_STORE, str(root)]] * count)
    assert statuses(root) == ["FINISHED"] * count
    assert len(query(root, "SELECT * FROM experiments WHERE name = 'small'")) == 1
    assert inconsistencies(root) == []
    assert sorted(path.name for path in root.iterdir() if not path.name.startswith((".", "mlflow.db"))) == []


CREATE_SHARED_STORE = """
import os, sys, time
os.environ["MLFLOW_TRACKING_URI"] = sys.argv[4]
from runner.tracking.mlflow_server import tracking_server
server = tracking_server(sys.argv[1])
time.sleep(float(sys.argv[2]))
client = server.connect()
client.create_run(server.get_or_create_experiment(client, sys.argv[3]))
"""


@pytest.mark.slow
def test_a_database_is_created_once_whatever_the_roots(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'shared' / 'mlflow.db'}"
    names = ["one", "two", "three", "two"]
    check_all_succeed(
        *(
            [
                sys.executable,
                "-c",
                CREATE_SHARED_STORE,
                str(tmp_path / f"root {number}"),
                str(number * 0.7),
                name,
                uri,
            ]
            for number, name in enumerate(names)
        )
    )
    found = query(tmp_path / "shared", "SELECT name FROM experiments ORDER BY 1")
    assert [name for (name,) in found if name != "Default"] == sorted(set(names))
    assert len(statuses(tmp_path / "shared")) == len(names)


# Resuming one run


def kill_after_snapshots(options: list[str], folder: Path) -> None:
    """Start a run and kill it when it has written a snapshot or two."""
    process = started(training([*options, "--checkpoints.epochs", "1"]), "\n    3 ", folder)
    process.kill()
    process.wait(10)


@pytest.mark.parametrize(
    "count", [pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.long)]
)
def test_processes_that_resume_one_run(
    options: list[str], root: Path, cache: Path, tmp_path: Path, count: int
) -> None:
    """One of them resumes it; the others start a new run or are refused."""
    options = [*options, "--train.epochs", str(EPOCHS), "--schedule.kind", "constant"]
    kill_after_snapshots(options, tmp_path)
    (run_id,) = [path.name for path in (root / "journals").iterdir() if path.is_dir()]
    outcomes = run_at_once(*[training([*options, "--resume", "auto"])] * count)
    for status, _, errors in outcomes:
        assert status in (0, 2), errors
        if status:
            assert "another process" in one_sentence(errors)
    succeeded = sum(status == 0 for status, _, _ in outcomes)
    assert statuses(root) == ["FINISHED"] * succeeded
    assert query(root, f"SELECT status FROM runs WHERE run_uuid = '{run_id}'") == [("FINISHED",)]  # noqa: S608
    first, *others = curves(root)
    assert epochs_of(first) == EPOCHS
    assert others == [first] * (succeeded - 1), "a resumed run is equal to one that was not interrupted"
    assert inconsistencies(root, cache) == []


@pytest.mark.slow
def test_a_run_in_progress_cannot_be_resumed(
    options: list[str], root: Path, cache: Path, tmp_path: Path
) -> None:
    options = [*options, *ENDLESS, "--checkpoints.epochs", "1"]
    process = started(training(options), "\n    3 ", tmp_path)
    try:
        (run_id,) = [path.name for path in (root / "journals").iterdir() if path.is_dir()]
        ((status, _, errors),) = run_at_once(training([*options, "--resume", run_id[:8]]))
        assert status == 2
        assert "still runs" in one_sentence(errors)
        assert process.poll() is None
    finally:
        process.terminate()
        process.wait(120)
    assert statuses(root) == ["KILLED"]
    assert inconsistencies(root, cache) == []
