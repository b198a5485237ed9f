"""`runner train --workers N`: the runs of a repeated run are trained by several processes."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from commands import client_of, one_sentence, runs_of, started

from runner import train
from runner.cli import train as checked_train
from runner.utils.exit_status import run_main
from runner.utils.processes import cpu_count

FOLDS = ("--augment.views", "none", "--split.folds", "3", "--train.epochs", "2")
SAME_FEATURES = ("--model.normalize", "{mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}")
LONG = ("--train.epochs", "160", "--checkpoints.minutes", "0.01")
"""Settings of folds that can be stopped in mid-training, as their first snapshot comes within a second."""
DURATIONS = ("epoch_seconds", "images_per_second", "system/")


def scores(client: Any) -> dict[str, dict[str, float]]:
    """The metrics of each run, by its name, without those that measure time."""
    return {
        run.info.run_name: {
            name: value for name, value in run.data.metrics.items() if not name.startswith(DURATIONS)
        }
        for run in runs_of(client)
    }


@pytest.mark.slow
def test_results_are_those_of_one_run_after_the_other(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*small, *FOLDS, *SAME_FEATURES, "--cache", str(tmp_path / "cache")]
    assert run_main(lambda: train.main([*words, "--workers", "2"])) == 0
    assert "training 3 runs, 2 at a time" in capfd.readouterr().out
    parent, *children = runs_of(client_of(tmp_path))
    assert parent.data.metrics["system/features/misses"] == 36
    assert [each.data.metrics["system/features/misses"] for each in children] == [0, 0, 0]
    other, threads = tmp_path / "one after the other", torch.get_num_threads()
    torch.set_num_threads(
        max(1, cpu_count() // 2)
    )  # as many as each of the two had: sums have the same order
    try:
        assert run_main(lambda: train.main([*words, "--tracking.root", str(other / "mlruns")])) == 0
    finally:
        torch.set_num_threads(threads)
    assert scores(client_of(tmp_path)) == scores(client_of(other))


@pytest.mark.slow
def test_what_a_killed_process_leaves_is_trained(small: list[str], tmp_path: Path) -> None:
    words = [*small, *FOLDS, *SAME_FEATURES, *LONG, "--workers", "2"]
    process = started([sys.executable, "-m", "runner.cli.main", "train", *words], "2 at a time", tmp_path)
    worker = first_worker(tmp_path)
    worker.kill()
    assert process.wait(300) == 0, (tmp_path / "errors.txt").read_text()
    runs = runs_of(client_of(tmp_path))
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert any("runner.resumed" in run.data.tags for run in runs)


@pytest.mark.slow
def test_a_stop_stops_all_processes_and_nothing_is_lost(small: list[str], tmp_path: Path) -> None:
    words = [*small, *FOLDS, *SAME_FEATURES, *LONG, "--workers", "2"]
    command = [sys.executable, "-m", "runner.cli.main", "train", *words]
    process = started(command, "2 at a time", tmp_path)
    first_worker(tmp_path, of=2)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert one_sentence((tmp_path / "errors.txt").read_text()) == "stopped by SIGTERM"
    assert psutil.wait_procs(family, 10)[1] == []
    statuses = {run.info.status for run in runs_of(client_of(tmp_path))}
    assert "KILLED" in statuses
    assert statuses <= {"KILLED", "FINISHED"}  # on a busy machine a fold may have ended before
    process = started([*command, "--resume", "auto"], "2 at a time", tmp_path)
    assert process.wait(300) == 0, (tmp_path / "errors.txt").read_text()
    runs = runs_of(client_of(tmp_path))
    assert [run.info.status for run in runs] == ["FINISHED"] * 4
    assert any("runner.resumed" in run.data.tags for run in runs)


def first_worker(folder: Path, of: int = 1) -> psutil.Process:
    """A process that trains a fold, once MLflow has the runs of so many and their snapshots are written."""
    client = client_of(folder)
    for _ in range(600):
        workers = [run for run in runs_of(client) if "mlflow.parentRunId" in run.data.tags]
        states = {path.parent for path in folder.glob("mlruns/journals/*/state/0*")}
        if workers and len(states) >= of:
            return psutil.Process(int(workers[0].data.tags["runner.pid"]))
        time.sleep(0.1)
    raise TimeoutError("no fold is trained")


@pytest.mark.slow
def test_features_of_all_stages_are_computed_before(small: list[str], tmp_path: Path) -> None:
    stages = "[{epochs: 1, trainable: head}, {epochs: 1, trainable: last:1}]"
    words = [
        *small,
        *FOLDS,
        *SAME_FEATURES,
        "--train.epochs",
        "2",
        "--train.stages",
        stages,
        "--workers",
        "2",
    ]
    assert run_main(lambda: train.main(words)) == 0
    parent, children = [], []
    for each in runs_of(client_of(tmp_path)):
        (children if "mlflow.parentRunId" in each.data.tags else parent).append(each)
    assert len(children) == 3
    assert all(child.data.metrics["system/features/misses"] == 0 for child in children)
    assert parent[0].data.metrics["system/features/misses"] > 0


@pytest.mark.slow
def test_a_run_that_fails_fails_the_command(small: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    words = [*small, *FOLDS, *SAME_FEATURES, "--optim.lr", "1e30", "--workers", "2"]
    assert run_main(lambda: train.main(words)) == 2
    assert "training diverged" in one_sentence(capfd.readouterr().err)


@pytest.mark.parametrize(
    ("words", "gpus", "message"),
    [
        (["-n", "2"], 0, "--workers 2 trains runs side by side, -n 2 trains one run on several processes"),
        ([], 1, "--workers 2 is for the CPU, but there is a GPU"),
        (["--split.fold", "1"], 0, "--workers 2 trains several runs side by side, but there is one"),
    ],
)
def test_what_cannot_work_is_refused(
    small: list[str],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    gpus: int,
    message: str,
) -> None:
    monkeypatch.setattr(checked_train, "gpu_count", lambda: gpus)
    assert run_main(lambda: checked_train.main([*small, *FOLDS, "--workers", "2", *words])) == 2
    assert message in one_sentence(capfd.readouterr().err)
