"""Studies in a journal file, without training: which trials are run, pruned, failed, and which studies are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from studies import CONDITIONAL, GRID, SPACE, make_plan, quickstart, states, values_of, work

from runner.study.algorithms import SAMPLERS
from runner.study.plan import Plan
from runner.study.space import Dimension, Space
from runner.study.study import MAX_FAILURES, Study
from runner.utils.errors import UserError

Make = Callable[..., Plan]
INTERRUPTED_TRIALS = {"tpe": 16, "gp": 13, "cmaes": 16}
"""Trials after which a sampler no longer draws at random."""


@pytest.fixture
def plan(tmp_path: Path) -> Make:
    """`plan(trials=9)`: a plan whose journal lies in `tmp_path`, with some fields changed."""
    return lambda storage=tmp_path / "studies.journal", **changes: make_plan(storage, **changes)


# Ask and complete


def test_the_first_trial_is_the_baseline(plan: Make, tmp_path: Path) -> None:
    study, baseline = Study(plan(), tmp_path), quickstart()
    first, *others = work(study)
    assert (first.number, first.is_baseline, first.experiment) == (0, True, baseline)
    assert first.values == {"optim.lr": baseline.optim.lr, "model.dropout": baseline.model.dropout}
    assert study.baseline_trial is not None
    assert study.baseline_trial.params == first.values
    assert len(others) == 5
    for number, trial in enumerate(others, 1):
        assert (trial.number, trial.is_baseline) == (number, False)
        assert trial.experiment.optim.lr == trial.values["optim.lr"]
        assert trial.experiment.model.dropout == trial.values["model.dropout"]
        rest = {"optim": baseline.optim, "model": baseline.model}
        assert dataclasses.replace(trial.experiment, **rest) == baseline
    assert states(study) == ["COMPLETE"] * 6
    assert study.is_finished


@pytest.mark.parametrize(
    ("objective", "values", "better"),
    [("top1", (0.5, 0.7, 0.7, 0.6), 0.71), ("loss", (0.5, 0.2, 0.2, 0.6), 0.1)],
)
def test_the_best_is_the_first_of_equals(
    plan: Make, tmp_path: Path, objective: str, values: tuple[float, ...], better: float
) -> None:
    study = Study(plan(objective=objective), tmp_path)
    assert study.best_trial is None
    assert study.is_improvement(0.0)
    for value in values:
        study.ask()
        study.complete(value)
    assert study.best_trial is not None
    assert study.best_trial.number == 1
    assert not study.is_improvement(values[1])
    assert study.is_improvement(better)


def test_the_number_of_trials_is_a_total(plan: Make, tmp_path: Path) -> None:
    assert len(work(Study(plan(trials=3), tmp_path))) == 3
    again = Study(plan(trials=3), tmp_path)
    assert again.is_finished
    assert work(again) == []
    more = Study(plan(trials=5), tmp_path)
    assert not more.is_finished
    assert [trial.number for trial in work(more)] == [3, 4]
    assert work(Study(plan(trials=2), tmp_path)) == []


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_setting_is_left_out_unless_its_condition_holds(plan: Make, tmp_path: Path, sampler: str) -> None:
    trials = work(Study(plan(space=CONDITIONAL, sampler=sampler, trials=25), tmp_path))
    assert {trial.values["optim.name"] for trial in trials} == {"adam", "adamw", "sgd"}
    for trial in trials:
        assert ("optim.momentum" in trial.values) == (trial.values["optim.name"] == "sgd")


# The same seed, the same study


def test_one_worker_repeats_itself(plan: Make, tmp_path: Path) -> None:
    def draws(name: str, **changes: Any) -> list[dict[str, Any]]:
        about = plan(tmp_path / f"{name}.journal", sampler="tpe", trials=14, **changes)
        return values_of(work(Study(about, tmp_path / name)))

    first = draws("one")
    assert draws("two") == first
    assert draws("three", sampler_seed=1)[1:] != first[1:]
    assert len({str(values) for values in first}) == 14


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_stopped_study_continues_as_if_it_had_not_been_stopped(
    plan: Make, tmp_path: Path, sampler: str
) -> None:
    trials = INTERRUPTED_TRIALS.get(sampler, 8)
    about = {"sampler": sampler, "space": GRID if sampler == "grid" else SPACE, "trials": trials}
    uninterrupted = plan(tmp_path / "uninterrupted.journal", **about)
    stopped = plan(tmp_path / "stopped.journal", **about)
    expected = values_of(work(Study(uninterrupted, tmp_path / "uninterrupted")))
    found: list[dict[str, Any]] = []
    for limit in (1, trials - 4, 1000):
        found += values_of(work(Study(stopped, tmp_path / "stopped"), limit))
    assert found == expected
    if sampler != "grid":
        assert len(found) == trials


def test_two_workers_do_not_draw_the_same_values(plan: Make, tmp_path: Path) -> None:
    one, other = Study(plan(sampler="tpe"), tmp_path), Study(plan(sampler="tpe"), tmp_path)
    first, second = one.ask(), other.ask()
    assert first is not None
    assert second is not None
    assert (first.is_baseline, second.is_baseline) == (True, False)
    one.complete(0.5)
    third = one.ask()
    assert third is not None
    assert third.values != second.values


def test_a_grid_ends_when_it_is_exhausted(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(space=GRID, sampler="grid", trials=50), tmp_path)
    trials = work(study)
    points = [(trial.values["model.dropout"], trial.values["train.batch_size"]) for trial in trials]
    assert sorted(points) == [(dropout, size) for dropout in (0.1, 0.5) for size in (16, 32, 64)]
    assert study.is_finished
    assert Study(plan(space=GRID, sampler="grid", trials=50), tmp_path).ask() is None


def test_a_grid_repeats_no_trial(plan: Make, tmp_path: Path) -> None:
    """Neither the baseline, which is one of its points, nor points that differ in a setting that is not searched."""
    optimizer = Dimension("optim.name", choices=("adam", "sgd"))
    momentum = Dimension("optim.momentum", choices=(0.5, 0.9), when=(("optim.name", ("sgd",)),))
    unsearched = Dimension("train.clip", choices=(0.0, 1.0), when=(("schedule.kind", ("no such",)),))
    about = plan(space=Space((optimizer, momentum, unsearched)), sampler="grid", trials=50)
    study = Study(about, tmp_path)
    values = values_of(work(study))
    assert values[0] == {"optim.name": "adam"}, "the baseline"
    assert sorted(values[1:], key=str) == [
        {"optim.name": "sgd", "optim.momentum": momentum} for momentum in (0.5, 0.9)
    ]
    assert study.is_finished


def test_workers_do_not_try_a_point_of_a_grid_twice(plan: Make, tmp_path: Path) -> None:
    about = plan(space=GRID, sampler="grid", trials=50)
    first = Study(about, tmp_path)
    work(first, 5)
    second = Study(about, tmp_path)
    assert first.ask() is not None, "the sixth point"
    assert second.ask() is None, "it is running, and there is no other one"
    first.complete(0.5)
    assert second.is_finished


# Interruptions


def test_a_trial_that_its_user_stopped_is_always_tried_again(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=2), tmp_path)
    work(study, 1)
    values = []
    for _ in range(3):
        trial = study.ask()
        assert trial is not None
        values.append(trial.values)
        study.interrupt("stopped by SIGINT")
        assert not study._running
    (last,) = work(study)
    assert values == [last.values] * 3
    assert states(study) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "COMPLETE"]
    assert [trial.user_attrs.get("lost") for trial in study.trials()][1:4] == ["stopped by SIGINT"] * 3
    assert study.count_trials() == 2
    assert study.is_finished


def test_an_interruption_without_a_trial_does_nothing(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    study.interrupt("stopped by SIGINT")
    assert states(study) == ["WAITING"]


def test_interrupted_trials_are_no_failures(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    for _ in range(MAX_FAILURES + 2):
        assert study.ask() is not None
        study.interrupt("stopped by SIGTERM")
    assert study.ask() is not None


def test_a_trial_of_a_live_worker_is_not_stale(plan: Make, tmp_path: Path) -> None:
    one, other = Study(plan(), tmp_path), Study(plan(), tmp_path)
    one.ask()
    with other.lock:
        assert other.requeue_stale_trials() == []
    assert states(other) == ["RUNNING"]


def test_a_file_is_not_shared_with_another_host(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Study(plan(), tmp_path), Study(plan(), tmp_path)
    one.ask()
    one.annotate(owner=["elsewhere", 1, 1.0])
    with pytest.raises(UserError, match=r"running on elsewhere.*PostgreSQL"):
        other.ask()
    monkeypatch.setattr("runner.study.stale_trials.MAX_SILENCE", -1)
    again = other.ask()
    assert again is not None
    assert again.number == 1
    assert states(other) == ["FAIL", "RUNNING"]


# Pruning


def test_poor_trials_are_pruned(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=9, pruner="median"), tmp_path)
    for value in (0.9, 0.8, 0.85, 0.7, 0.95):
        study.ask()
        assert not any(study.report(epoch, value) for epoch in range(1, 6))
        study.complete(value)
    study.ask()
    assert any(study.report(epoch, 0.1) for epoch in range(1, 6))
    study.prune("pruned at epoch 5, at 0.1")
    study.ask()
    assert not any(study.report(epoch, 0.99) for epoch in range(1, 6))
    study.complete(0.99)
    pruned = study.trials()[5]
    assert (pruned.state, pruned.value) == (TrialState.PRUNED, 0.1)
    assert pruned.user_attrs["reason"] == "pruned at epoch 5, at 0.1"


@pytest.mark.parametrize(("name", "seeds"), [("median", 1), ("auto", 1), ("hyperband", 1), ("wilcoxon", 4)])
def test_the_baseline_is_never_pruned(plan: Make, tmp_path: Path, name: str, seeds: int) -> None:
    study = Study(plan(trials=12, pruner=name, seeds=seeds), tmp_path)
    baseline = Study(plan(trials=12, pruner=name, seeds=seeds), tmp_path)
    first = baseline.ask()
    assert first is not None
    assert first.is_baseline
    for number in range(9):
        study.ask()
        for epoch in range(5):
            study.report(epoch, 0.8 + number / 100)
        study.complete(0.8 + number / 100)
    assert not any(baseline.report(epoch, 0.0) for epoch in range(5))
    assert study.ask() is not None
    assert name == "wilcoxon" or any(study.report(epoch, 0.0) for epoch in range(5)), "others are"
