"""Workers that are killed in a trial of a study without training: what is lost, and what is tried again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState
from studies import WORKER_TIMEOUT, die_in_trial, make_plan, quickstart, start_process, states, work

from runner.study.plan import Plan
from runner.study.study import Study

Make = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Make:
    """`plan(trials=9)`: a plan whose journal lies in `tmp_path`, with some fields changed."""
    return lambda storage=tmp_path / "studies.journal", **changes: make_plan(storage, **changes)


def test_a_trial_whose_worker_died_is_tried_again(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=3)
    die_in_trial(about, tmp_path, after=1)
    study = Study(about, tmp_path)
    assert states(study) == ["COMPLETE", "RUNNING"]
    assert not study.is_finished
    with study.lock:
        assert study.requeue_stale_trials() == [1]
        assert study.requeue_stale_trials() == []
    lost = study.trials()[1]
    assert study.retried_trials_of(lost.user_attrs["owner"][1]) == [1]
    assert study.retried_trials_of(os.getpid()) == []
    assert lost.state == TrialState.FAIL
    assert lost.user_attrs["lost"] == "its worker died"
    assert states(study) == ["COMPLETE", "FAIL", "WAITING"]
    assert (study.count_trials(), study.is_finished) == (1, False)
    again = study.ask()
    assert again is not None
    assert (again.number, again.is_baseline) == (2, False)
    assert again.values == lost.params
    assert study.trials()[2].user_attrs["retry"] == 1
    study.complete(0.5)
    (last,) = work(study)
    assert last.values != again.values
    assert study.count_trials() == 3
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


def test_a_trial_is_not_tried_a_third_time(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=3)
    for _ in range(2):
        die_in_trial(about, tmp_path)
    study = Study(about, tmp_path)
    trials = work(study)
    assert states(study) == ["FAIL", "FAIL", *["COMPLETE"] * 3]
    assert ["lost" in trial.user_attrs for trial in study.trials()] == [True, True, False, False, False]
    assert [trial.is_baseline for trial in trials] == [False] * 3
    assert study.count_trials() == 3


def test_a_lost_baseline_is_still_the_baseline(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=2)
    die_in_trial(about, tmp_path)
    study = Study(about, tmp_path)
    again = study.ask()
    assert again is not None
    assert (again.number, again.is_baseline, again.experiment) == (1, True, quickstart())
    study.complete(0.4)
    assert study.baseline_trial is not None
    assert study.baseline_trial.number == 1


def test_a_worker_on_sqlite_that_died_loses_one_trial(plan: Make, tmp_path: Path) -> None:
    about = plan(f"sqlite:///{tmp_path / 'studies.db'}", trials=3)
    die_in_trial(about, tmp_path, after=1)
    study = Study(about, tmp_path)
    assert len(work(study)) == 2
    assert states(study) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert study.is_finished


def test_locks_of_a_killed_process_are_released(plan: Make, tmp_path: Path) -> None:
    process = start_process(
        plan(),
        tmp_path,
        "study.storage._backend._lock.acquire()\nstudy.lock.acquire()\nos.kill(os.getpid(), signal.SIGKILL)\n",
    )
    assert process.communicate(timeout=WORKER_TIMEOUT)[1] == ""
    assert process.returncode == -signal.SIGKILL
    assert len(work(Study(plan(), tmp_path))) == 6
