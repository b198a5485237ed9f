"""A worker of a study from within: what it sets up, reads, prunes and reports."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from commands import client_of
from helpers import QUIET, Place
from searches import artifacts_of, baseline_of, runs_of_study, states, study_words, trial_runs, trials_of
from stores import status

from runner.data.manifest import build_manifest
from runner.features.cache import FeatureCache
from runner.study import storage, worker
from runner.study.options import Role
from runner.study.plan import Plan
from runner.study.report import write_report
from runner.study.session import StudySession, open_session
from runner.study.space import Dimension, Space
from runner.study.stale_trials import fail_lost_trial
from runner.study.study import Study
from runner.study.worker import Worker
from runner.tracking.journal import Journal, Owner
from runner.tracking.process_identity import ProcessIdentity, process_start_time, this_host
from runner.training.setup import Setup
from runner.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("plain_environment")


def random_plan(words: list[str], **changes: Any) -> Plan:
    baseline = baseline_of(words)
    space = Space((Dimension("optim.lr", 1e-4, 0.1, log=True),))
    return Plan(
        "some",
        baseline,
        space,
        storage.default_storage(Path(baseline.tracking.root)),
        sampler="random",
        **changes,
    )


@dataclasses.dataclass(frozen=True)
class Watched:
    """A study of four trials: its folder, the splits whose features were read, and what was set up."""

    folder: Path
    splits: list[str]
    setups: list[Setup]


@pytest.fixture(scope="module")
def watched(place: Place, tmp_path_factory: pytest.TempPathFactory, accelerator: Accelerator) -> Watched:
    """A study whose trial 2 is pruned after its first epoch."""
    folder = tmp_path_factory.mktemp("watched")
    watched = Watched(folder, [], [])
    get, report, prepare = FeatureCache.get, Study.report, worker.prepare

    def watch_splits(self: FeatureCache, split: str, view: int) -> Any:
        watched.splits.append(split)
        return get(self, split, view)

    def prune_trial_2(self: Study, step: int, value: float, number: int) -> bool:
        report(self, step, value, number)
        return number == 2

    def watch_setups(*args: Any) -> Setup:
        watched.setups.append(prepare(*args))
        return watched.setups[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setattr(FeatureCache, "get", watch_splits)
        patch.setattr(Study, "report", prune_trial_2)
        patch.setattr(worker, "prepare", watch_setups)
        plan = random_plan(study_words(place(folder), folder / "space.yaml"), trials=4)
        with open_session(plan, accelerator, Role()) as session:
            assert Worker(session, stop_requested=lambda: False).run() == 4
    return watched


def test_no_trial_sees_the_test_split(watched: Watched) -> None:
    assert set(watched.splits) == {"train", "val"}
    assert len(watched.setups) == 4
    for setup in watched.setups:
        assert not setup.manifest.select("test")
        assert not setup.features.manifest.select("test")
        assert {entry.split for entry in setup.manifest.entries} == {"train", "val"}
        assert len(setup.manifest.select("val")) == 9


def test_a_pruned_trial_has_a_reason(watched: Watched) -> None:
    assert states(watched.folder) == ["COMPLETE", "COMPLETE", "PRUNED", "COMPLETE"]
    parent, _ = runs_of_study(watched.folder)
    assert parent.info.status == "FINISHED"
    runs = trial_runs(watched.folder)
    pruned, trial = runs.pop(2), trials_of(watched.folder)[2]
    assert pruned.info.status == "FINISHED"
    assert pruned.data.tags["runner.pruned"] == trial.user_attrs["reason"]
    assert "objective" not in pruned.data.metrics
    assert trial.user_attrs["reason"].startswith("pruned at epoch 1, at 0.")
    assert not any("checkpoints" in path for path in artifacts_of(watched.folder, pruned))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


@pytest.mark.parametrize("when", ["in an epoch", "after the last epoch"])
def test_a_trial_that_was_given_up_meanwhile_is_dropped(
    place: Place, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Another worker found it silent. Its values are tried again, and its run says why it did not finish."""
    report = Study.report

    def give_up_trial_1(self: Study, step: int, value: float, number: int) -> bool:
        before = when == "in an epoch" or report(self, step, value, number)
        if number == 1 and step == 2:
            fail_lost_trial(self.optuna, self.trials()[1])
        return report(self, step, value, number) if when == "in an epoch" else before

    monkeypatch.setattr(Study, "report", give_up_trial_1)
    plan = random_plan(study_words(place(tmp_path), tmp_path / "space.yaml"), trials=3)
    with open_session(plan, accelerator, Role()) as session:
        assert Worker(session, stop_requested=lambda: False).run() == 4
    assert states(tmp_path) == ["COMPLETE", "LOST", "COMPLETE", "COMPLETE"]
    trials = trials_of(tmp_path)
    assert trials[2].params == trials[1].params
    runs = trial_runs(tmp_path)
    dropped = runs.pop(1)
    assert dropped.info.status == "FAILED"
    assert dropped.data.tags["runner.reason"].startswith(
        "Trial 1 was given up while this worker was out of reach"
    )
    assert "objective" not in dropped.data.metrics
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_a_trial_may_have_several_training_seeds(
    place: Place, tmp_path: Path, accelerator: Accelerator
) -> None:
    """Its value is their mean."""
    plan = random_plan(study_words(place(tmp_path), tmp_path / "space.yaml"), trials=1, seeds=2)
    with open_session(plan, accelerator, Role()) as session:
        assert Worker(session, stop_requested=lambda: False).run() == 1
    run, client = trial_runs(tmp_path)[0], client_of(tmp_path)
    best = [
        max(point.value for point in client.get_metric_history(run.info.run_id, name))
        for name in ("val/top1", "seed1/val/top1")
    ]
    assert run.data.metrics["objective"] == trials_of(tmp_path)[0].value == pytest.approx(sum(best) / 2)
    assert "objective_sd" in run.data.metrics
    assert list(trials_of(tmp_path)[0].intermediate_values.values()) == best


@pytest.mark.slow
def test_a_trial_may_be_validated_on_folds(
    place: Place, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its value is their mean. They divide the training and validation images; those of the test split stay unseen."""
    setups, read, prepare, get = [], set(), worker.prepare, FeatureCache.get

    def watch_setups(*args: Any) -> Setup:
        setups.append(prepare(*args))
        return setups[-1]

    def watch_splits(self: FeatureCache, split: str, view: int) -> Any:
        read.add(split)
        return get(self, split, view)

    monkeypatch.setattr(worker, "prepare", watch_setups)
    monkeypatch.setattr(FeatureCache, "get", watch_splits)
    plan = random_plan(study_words(place(tmp_path), tmp_path / "space.yaml"), trials=1, seeds=2, folds=3)
    with open_session(plan, accelerator, Role()) as session:
        assert Worker(session, stop_requested=lambda: False).run() == 1
    run, (trial,) = trial_runs(tmp_path)[0], trials_of(tmp_path)
    best = list(trial.intermediate_values.values())
    assert len(best) == 6
    assert run.data.metrics["objective"] == trial.value == pytest.approx(sum(best) / 6)
    assert {"val/top1", "fold2/val/top1", "fold0/seed1/val/top1"} <= run.data.metrics.keys()
    assert (run.data.params["split.folds"], run.data.params["split.fold_as"]) == ("3", "val")
    assert read == {"train", "val"}
    plain = build_manifest(plan.baseline, QUIET)
    hidden = {entry.path for entry in plain.select("test")}
    visible = {entry.path for entry in plain.entries} - hidden
    folds = [{entry.path for entry in setup.manifest.select("val")} for setup in setups]
    assert folds[:3] == folds[3:]
    assert set.union(*folds) == visible
    assert sum(map(len, folds[:3])) == len(visible)
    assert all({entry.path for entry in setup.manifest.entries} == visible for setup in setups)


def test_a_baseline_that_no_trial_beat_is_kept_without_training_it_again(
    place: Place, tmp_path: Path, accelerator: Accelerator, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = random_plan(study_words(place(tmp_path), tmp_path / "space.yaml"), trials=2)
    with open_session(plan, accelerator, Role()) as session:
        assert session.study is not None
        for value in (0.9, 0.8):
            assert session.study.ask() is not None
            session.study.complete(value)
        write_report(session, seeds=2)
    run, children = runs_of_study(tmp_path)
    assert children == [], "nothing is confirmed"
    verdict = "No gain: no trial was better than the baseline. Keep the baseline."
    assert run.data.tags["runner.verdict"] == verdict
    output = capsys.readouterr().out
    assert verdict in output
    assert "importance of settings: unknown after 2 trials (too few)" in output
    assert "--config" not in output, "nothing is recommended"
    assert verdict in (tmp_path / "mlruns" / "studies" / "some" / "best.yaml").read_text()


def test_what_the_trials_found_is_reported_even_if_confirming_fails(
    place: Place, tmp_path: Path, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(session: StudySession, *_: object) -> None:
        assert status(client_of(tmp_path), session.study_run.run_id) == "RUNNING", "it is not over yet"
        raise UserError("The disk is full.")

    monkeypatch.setattr("runner.study.report.confirm", failing)
    plan = random_plan(study_words(place(tmp_path), tmp_path / "space.yaml"), trials=2)
    with open_session(plan, accelerator, Role()) as session:
        assert session.study is not None
        for value in (0.8, 0.9):
            assert session.study.ask() is not None
            session.study.complete(value)
        with pytest.raises(UserError):
            write_report(session, seeds=2)
    run, _ = runs_of_study(tmp_path)
    assert {"best.yaml", "trials.csv", "figures/history.png"} <= artifacts_of(tmp_path, run)
    assert (run.info.status, run.data.tags["runner.reason"]) == ("FINISHED", "The disk is full.")
    with open_session(plan, accelerator, Role()) as session:
        write_report(session, seeds=0)
    run, _ = runs_of_study(tmp_path)
    assert run.info.status == "FINISHED"
    assert "runner.reason" not in run.data.tags


def test_a_studys_run_does_not_end_while_another_process_writes_the_report(
    place: Place, tmp_path: Path, accelerator: Accelerator
) -> None:
    plan = random_plan(study_words(place(tmp_path), tmp_path / "space.yaml"), trials=1)
    with open_session(plan, accelerator, Role()) as session:
        run_id, server = session.study_run.run_id, session.tracking.server
        owner = ProcessIdentity(this_host(), os.getppid(), process_start_time(os.getppid()))
        journal = Journal.create(
            server.journals, Owner(**dataclasses.asdict(owner), uri=server.uri, run_id=run_id)
        )
    run, _ = runs_of_study(tmp_path)
    assert run.info.status == "RUNNING"
    assert ProcessIdentity.from_tags(run.data.tags) == owner
    journal.release()
    with open_session(plan, accelerator, Role()):
        pass
    assert status(client_of(tmp_path), run_id) == "FINISHED"


def test_a_report_can_be_written_again(place: Place, tmp_path: Path, accelerator: Accelerator) -> None:
    """A study that was continued with more trials has another best one."""
    one = random_plan(study_words(place(tmp_path), tmp_path / "space.yaml"), trials=1)
    for number, plan in enumerate((one, dataclasses.replace(one, trials=2))):
        with open_session(plan, accelerator, Role()) as session:
            assert session.study is not None
            assert session.study.ask() is not None
            session.study.complete(0.5 + number / 10)
            write_report(session, seeds=0)
        run, _ = runs_of_study(tmp_path)
        assert run.data.metrics["objective"] == 0.5 + number / 10
        assert "runner.refused" not in run.data.tags
        assert run.data.tags["runner.best_trial"] == str(number)
