"""Studies whose trials fail, and studies of the same name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from studies import SPACE, make_plan, quickstart, states, work

from runner.study import storage
from runner.study.outages import DatabaseAwayError
from runner.study.plan import Plan
from runner.study.space import Dimension, Space
from runner.study.study import MAX_FAILURES, Study
from runner.tracking.process_identity import this_host
from runner.utils.errors import UserError

Make = Callable[..., Plan]


@pytest.fixture
def plan(tmp_path: Path) -> Make:
    """`plan(trials=9)`: a plan whose journal lies in `tmp_path`, with some fields changed."""
    return lambda storage=tmp_path / "studies.journal", **changes: make_plan(storage, **changes)


def test_failures_in_a_row_stop_the_study(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=50), tmp_path)
    work(study, 2)
    for number in range(MAX_FAILURES):
        study.ask()
        study.fail(f"fault {number}")
    with pytest.raises(
        UserError, match=rf"'some' stops.*last {MAX_FAILURES} trials failed.*trial 2: fault 0"
    ):
        study.ask()
    assert not study._running
    assert "RUNNING" not in states(study)


def test_a_success_between_failures_lets_the_study_continue(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=50), tmp_path)
    for number in range(2 * MAX_FAILURES):
        study.ask()
        study.complete(0.5) if number % MAX_FAILURES == 2 else study.fail("a fault")
    assert study.ask() is not None


def test_a_combination_that_cannot_work_is_a_failed_trial(plan: Make, tmp_path: Path) -> None:
    impossible = Space((Dimension("train.accumulate", choices=(1, 1000)),))
    study = Study(plan(space=impossible, sampler="grid", trials=9), tmp_path)
    assert len(work(study)) == 1, "the baseline, which is the combination that works"
    (failed,) = (trial for trial in study.trials() if trial.state == TrialState.FAIL)
    assert "train.accumulate (1000)" in failed.user_attrs["reason"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"space": Space(SPACE.dimensions[:1])}, "space.model.dropout"),
        ({"objective": "balanced_accuracy"}, "objective"),
        ({"seeds": 3}, "seeds"),
        ({"baseline": quickstart("--seed.split", "1")}, "seed.split was 0 and is 1 now"),
        ({"manifest": "b"}, "the images or their split have changed"),
        ({"weights": "b"}, "the pretrained weights have changed"),
    ],
)
def test_another_study_of_the_same_name_is_refused(
    plan: Make, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    data = {"manifest": "a", "weights": "a"}
    Study(plan(**data), tmp_path)
    with pytest.raises(UserError, match="'some' exists with other settings") as caught:
        Study(plan(**{**data, **changes}), tmp_path)
    assert named in str(caught.value)
    assert Study(plan(**data), tmp_path).ask() is not None, "the first one is undamaged"
    assert Study(plan(name="other", **changes), tmp_path).ask() is not None


def test_a_study_of_an_earlier_version_remembers_the_data_it_is_continued_with(
    plan: Make, tmp_path: Path
) -> None:
    Study(plan(), tmp_path)
    Study(plan(manifest="a"), tmp_path)
    with pytest.raises(UserError, match="the images"):
        Study(plan(manifest="b"), tmp_path)


def test_a_worker_may_differ_in_what_changes_no_result(plan: Make, tmp_path: Path) -> None:
    Study(plan(), tmp_path)
    elsewhere = quickstart("--cache", "/elsewhere", "--data.workers", "1")
    trial = Study(plan(baseline=elsewhere), tmp_path).ask()
    assert trial is not None
    assert trial.experiment == elsewhere


def test_a_study_of_another_program_is_refused(plan: Make, tmp_path: Path) -> None:
    foreign = optuna.create_study(storage=storage.connect(plan().storage), study_name="some")
    foreign.add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UserError, match="not created by this runner"):
        Study(plan(), tmp_path)
    assert len(foreign.trials) == 1


def test_a_damaged_study_is_refused(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    study.ask()
    study.annotate(owner=["here", "no number", 1.0])
    with pytest.raises(UserError, match=r"is damaged \(trial 0\)"):
        Study(plan(), tmp_path)


def test_a_process_that_died_while_it_created_the_study_does_no_harm(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It dies before or after any of the records that make a study."""

    class Killed(BaseException):
        pass

    for call in ("enqueue_trial", "set_user_attr", "set_metric_names"):
        for before in (True, False):
            about = plan(name=f"{call} {before}")
            real = getattr(optuna.Study, call)

            def die(self: Any, *args: Any, _real: Any = real, _before: bool = before, **named: Any) -> None:
                if not _before:
                    _real(self, *args, **named)
                raise Killed

            with monkeypatch.context() as patch:
                patch.setattr(optuna.Study, call, die)
                with pytest.raises(Killed):
                    Study(about, tmp_path)
            trials = work(Study(about, tmp_path))
            assert [trial.is_baseline for trial in trials] == [True, *[False] * 5], about.name


def test_the_trials_of_a_boot_ago_are_tried_again_at_once(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = this_host().rpartition("/")[0] + "/00000000"
    with monkeypatch.context() as patch:
        patch.setattr("runner.tracking.process_identity.this_host", lambda: earlier)
        assert Study(plan(trials=5), tmp_path).ask() is not None
    study = Study(plan(trials=5), tmp_path)
    retried = study.ask()
    assert retried is not None
    assert retried.is_baseline
    assert states(study) == ["FAIL", "RUNNING"]


def test_the_values_of_a_stopped_trial_are_queued_later_if_the_storage_went_away(
    plan: Make, tmp_path: Path
) -> None:
    """The trial was marked as failed before; others that were stopped in order are not queued twice."""

    def fail(*_: object, **__: object) -> None:
        raise DatabaseAwayError("It is away.")

    study = Study(plan(trials=3), tmp_path)
    assert study.ask() is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optuna.Study, "enqueue_trial", fail)
        study.interrupt("stopped by SIGTERM")
    assert states(study) == ["FAIL"]
    study = Study(plan(trials=3), tmp_path)
    repeated = study.ask()
    assert repeated is not None
    assert repeated.is_baseline
    study.interrupt("stopped by SIGTERM")
    for _ in range(2):
        study.requeue_stale_trials()
    assert states(study) == ["FAIL", "FAIL", "WAITING"]
    assert [trial.is_baseline for trial in work(study)] == [True, False, False]
