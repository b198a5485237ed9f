"""`search --batch`: trials that are trained together end as they do one by one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from commands import client_of
from helpers import Place
from optuna.trial import FrozenTrial
from searches import artifacts_of, baseline_of, states, study_words, trial_runs, trials_of

from runner.study import storage, together
from runner.study.options import Role
from runner.study.plan import Plan
from runner.study.session import open_session
from runner.study.space import Dimension, Space
from runner.study.study import Study
from runner.study.worker import Worker
from runner.training.setup import SharedSetup
from runner.utils.signals import Interrupted

pytestmark = pytest.mark.usefixtures("plain_environment")

POOLED = ("--model.head", "pooled", "--model.trainable", "head", "--model.width", "32")
SPACE = Space(
    (
        Dimension("optim.lr", 1e-4, 0.1, log=True),
        Dimension("model.dropout", 0.0, 0.8),
        Dimension("train.label_smoothing", 0.0, 0.2),
        Dimension("train.batch_size", choices=(8, 16)),
    )
)


def run_study(
    folder: Path, place: Place, accelerator: Accelerator, batch: int, **changes: Any
) -> list[FrozenTrial]:
    """Run a study of six trials in one worker."""
    folder.mkdir(exist_ok=True)
    baseline = baseline_of([*study_words(place(folder), folder / "space.yaml"), *POOLED])
    kept = storage.default_storage(Path(baseline.tracking.root))
    plan = Plan(
        "some", baseline, SPACE, kept, **{"sampler": "random", "trials": 6, "pruner": "none", **changes}
    )
    with open_session(plan, accelerator, Role()) as session:
        Worker(session, lambda: False, SharedSetup.of_trials(), batch).run()
    return trials_of(folder)


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many heads each stack had."""
    sizes: list[int] = []
    fit = together.fit_stacked

    def watch(heads: Any, *arguments: Any) -> None:
        sizes.append(len(heads))
        fit(heads, *arguments)

    monkeypatch.setattr(together, "fit_stacked", watch)
    return sizes


def metrics_of(folder: Path, run: Any) -> dict[str, list[tuple[int, float]]]:
    """All points of a run's metrics, but for times."""
    client, times = client_of(folder), ("epoch_seconds", "images_per_second")
    return {
        name: [(point.step, pytest.approx(point.value, rel=1e-6)) for point in points]
        for name in run.data.metrics
        if not name.endswith(times)
        for points in [client.get_metric_history(run.info.run_id, name)]
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [pytest.param({}, id="one training"), pytest.param({"seeds": 2, "folds": 2}, id="seeds and folds")],
)
def test_trials_end_as_they_do_one_by_one(
    place: Place, tmp_path: Path, accelerator: Accelerator, stacked: list[int], changes: dict[str, int]
) -> None:
    alone = run_study(tmp_path / "alone", place, accelerator, 1, **changes)
    assert not stacked
    start = time.monotonic()
    together = run_study(tmp_path / "together", place, accelerator, 4, **changes)
    seconds = [trial.user_attrs["seconds"] for trial in together]
    assert all(
        own > trial.user_attrs["training_seconds"] for own, trial in zip(seconds, together, strict=True)
    )
    assert sum(seconds) < time.monotonic() - start, "each has its share"
    assert sum(stacked) >= 4 * changes.get("seeds", 1) * changes.get("folds", 1)
    for one, other in zip(together, alone, strict=True):
        assert one.params == other.params
        assert one.state == other.state
        assert one.value == pytest.approx(other.value, rel=1e-6)
        assert one.intermediate_values == pytest.approx(other.intermediate_values, rel=1e-6)
    runs = [trial_runs(tmp_path / name) for name in ("together", "alone")]
    for number, run in runs[0].items():
        other = runs[1][number]
        assert run.info.run_name == other.info.run_name
        assert run.info.status == other.info.status == "FINISHED"
        assert run.data.params == other.data.params
        assert metrics_of(tmp_path / "together", run) == metrics_of(tmp_path / "alone", other)
    assert "checkpoints/best.safetensors" in artifacts_of(tmp_path / "together", runs[0][0])


def test_a_pruned_and_a_failed_trial_leave_the_others_as_they_are(
    place: Place,
    tmp_path: Path,
    accelerator: Accelerator,
    stacked: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = run_study(tmp_path / "alone", place, accelerator, 6)
    report = Study.report

    def prune_trial_3(self: Study, step: int, value: float, number: int) -> bool:
        if number == 4:
            raise ValueError("a fault of this trial")
        return report(self, step, value, number) or number == 3

    monkeypatch.setattr(Study, "report", prune_trial_3)
    trials = run_study(tmp_path / "together", place, accelerator, 6)
    assert stacked
    assert states(tmp_path / "together") == ["COMPLETE"] * 3 + ["PRUNED", "FAIL", "COMPLETE"]
    assert trials[3].user_attrs["reason"].startswith("pruned at epoch 1, at 0.")
    assert trials[4].user_attrs["reason"] == "ValueError: a fault of this trial"
    for number in (0, 1, 2, 5):
        assert trials[number].value == pytest.approx(expected[number].value, rel=1e-6)
    runs = trial_runs(tmp_path / "together")
    assert [runs[number].info.status for number in range(6)] == ["FINISHED"] * 4 + ["FAILED", "FINISHED"]


@pytest.mark.slow
@pytest.mark.parametrize("error", [Interrupted(15), OSError(28, "No space left on device")], ids=repr)
def test_all_trials_of_a_stopped_batch_are_tried_again(
    place: Place,
    tmp_path: Path,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
) -> None:
    report = Study.report

    def stop(self: Study, step: int, value: float, number: int) -> bool:
        if step == 2:
            raise error
        return report(self, step, value, number)

    monkeypatch.setattr(Study, "report", stop)
    with pytest.raises(type(error)):
        run_study(tmp_path / "some", place, accelerator, 6)
    assert states(tmp_path / "some") == ["LOST"] * 6 + ["WAITING"] * 6
    ended = "KILLED" if isinstance(error, Interrupted) else "FAILED"
    assert {run.info.status for run in trial_runs(tmp_path / "some").values()} == {ended}
    monkeypatch.setattr(Study, "report", report)
    trials = run_study(tmp_path / "some", place, accelerator, 6)
    assert states(tmp_path / "some") == ["LOST"] * 6 + ["COMPLETE"] * 6
    assert [trial.params for trial in trials[:6]] == [trial.params for trial in trials[6:]]
