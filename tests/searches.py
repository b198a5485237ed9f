"""`runner search` on the small experiment, and what its studies left in storage and MLflow."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, client_of, environment, runner, runs_of
from optuna.trial import FrozenTrial, TrialState

from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.study import options
from runner.study.storage import JOURNAL
from runner.study.trials import is_baseline, state_name

SPACE = "optim.lr: {low: 1e-4, high: 0.1, log: true}\nmodel.dropout: {low: 0.0, high: 0.8}\n"
LONG = ("--train.epochs", "100", "--pruner", "none", "--confirm", "0")
"""For studies that are disturbed: a trial takes a second or two, and none is pruned."""
PATIENCE = 200
"""Seconds that a command may take on a busy machine."""


def study_words(experiment: list[str], space: Path) -> list[str]:
    """The words of a study named `some` of the small experiment, around a baseline that can be beaten."""
    space.write_text(SPACE)
    return [
        *experiment,
        *("--study", "some", "--space", str(space)),
        *("--train.epochs", "2", "--augment.views", "none", "--optim.lr", "0.0001"),
    ]


def baseline_of(words: list[str]) -> Experiment:
    """The experiment that the words of a study describe."""
    return parse(options.parse(words)[1])[0]


def start_search(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a search; what it prints is appended to `folder`/output.txt."""
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            runner("search", *words),
            cwd=ROOT,
            env=environment(),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
        )


def output_of(folder: Path) -> str:
    return (folder / "output.txt").read_text()


def trials_of(folder: Path) -> list[FrozenTrial]:
    """The study's trials as they are now. Read without a lock, which a stopped process may hold."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / "mlruns" / JOURNAL
    if not path.exists() or b'"op_code":4' not in path.read_bytes():  # no trial yet
        return []
    storage = JournalStorage(JournalFileBackend(str(path)))
    return optuna.load_study(study_name="some", storage=storage).trials


def states(folder: Path) -> list[str]:
    return [state_name(trial) for trial in trials_of(folder)]


def best_of(folder: Path) -> FrozenTrial:
    """The best trial; of equal ones the first."""
    return max(trials_of(folder), key=lambda trial: (trial.value or 0.0, -trial.number))


def confirmed_sides(folder: Path) -> list[str]:
    """What is trained on new seeds: nothing if the baseline is the best."""
    return [] if is_baseline(best_of(folder)) else ["baseline", "best"]


def wait_for_trial(process: subprocess.Popen[bytes], folder: Path, after: int = -1) -> FrozenTrial:
    """Wait for a trial with a number above `after` that is in the middle of its epochs."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for trial in trials_of(folder):
            if trial.state == TrialState.RUNNING and trial.number > after and trial.intermediate_values:
                return trial
        if process.poll() is not None:
            break
        time.sleep(0.05)
    process.kill()
    return pytest.fail(f"no trial is running: {output_of(folder)}")


def runs_of_study(folder: Path) -> tuple[Any, list[Any]]:
    """The study's run, of which there must be one, and its child runs."""
    runs = runs_of(client_of(folder))
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1, [run.info.run_name for run in parents]
    (parent,) = parents
    children = [run for run in runs if run is not parent]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
    return parent, children


def trial_runs(folder: Path) -> dict[int, Any]:
    """The trials' runs by number."""
    runs = runs_of_study(folder)[1]
    return {int(run.data.tags["runner.trial"]): run for run in runs if "runner.trial" in run.data.tags}


def artifacts_of(folder: Path, run: Any) -> set[str]:
    """Paths of a run's artifacts."""
    client = client_of(folder)

    def below(path: str | None) -> Iterator[str]:
        for artifact in client.list_artifacts(run.info.run_id, path):
            if artifact.is_dir:
                yield from below(artifact.path)
            else:
                yield artifact.path

    return set(below(None))
