"""A whole run that is interrupted and resumed, with a recorder in place of MLflow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from helpers import QUIET, Make, Recorder, small_model
from interrupted_fits import interrupt_run, without_times
from safetensors.torch import save_file

from runner.config.identity import Identity
from runner.config.tree import as_tree
from runner.tracking.interrupted_runs import RunRecord
from runner.training import run
from runner.training.resume import ResumePoint
from runner.utils.errors import DivergedError, NotResumableError

DURATIONS = ("epoch_seconds", "images_per_second", "system/")


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.training.curves.draw_curves", lambda *_: None)


def points(records: Recorder) -> set[tuple[str, int, float]]:
    """What was logged, once each, without durations: a tracker leaves out what a run has logged before."""
    return {point for point in records.points if not point[0].startswith(DURATIONS)}


def record(records: Recorder) -> RunRecord:
    content = json.loads((records.folder / "state" / "run.json").read_text())
    del content["digest"]
    return RunRecord.from_dict(content)


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 4, 9])
def test_a_run_continues_to_the_same_result(
    make: Make, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    experiment = make("--tracking.gallery", "2", "--checkpoints.minutes", "0")
    first = Recorder(tmp_path / "whole")
    whole = run.train(experiment, accelerator, first, QUIET)
    records = Recorder(tmp_path / "stopped")
    snapshot = interrupt_run(experiment, accelerator, records, step)
    assert snapshot.step == step
    assert record(records).requested == json.loads(json.dumps(as_tree(experiment)))
    start = ResumePoint(as_tree(experiment), "0123456789", "small", snapshot)
    result = run.train(experiment, accelerator, records, QUIET, start)
    assert without_times(result.history) == without_times(whole.history)
    assert (result.best, result.last) == (whole.best, whole.last)
    assert points(records) == points(first)


@pytest.mark.parametrize(
    ("known", "sentence"),
    [
        (Identity(manifest="a"), "The images in .* are not those of run 01234567"),
        (Identity(weights="a"), "The pretrained weights are not those of run 01234567"),
    ],
)
def test_a_run_without_a_snapshot_needs_its_images_and_weights_too(
    make: Make, accelerator: Accelerator, tmp_path: Path, known: Identity, sentence: str
) -> None:
    weights = tmp_path / "vgg11.safetensors"
    tensors = small_model().state_dict()
    features = {name: value.contiguous() for name, value in tensors.items() if name.startswith("features.")}
    save_file(features, weights)
    experiment = make("--model.weights", str(weights), "--model.normalize", "statistics")
    start = ResumePoint(as_tree(experiment), "0123456789", "small", identity=known)
    with pytest.raises(NotResumableError, match=sentence):
        run.train(experiment, accelerator, Recorder(tmp_path / "records"), QUIET, start)


def test_the_record_says_what_images_and_weights_it_has(
    make: Make, accelerator: Accelerator, tmp_path: Path
) -> None:
    records = Recorder(tmp_path / "records")
    run.train(make("--train.epochs", "1"), accelerator, records, QUIET)
    identity = record(records).identity
    assert identity.manifest == records.tags["runner.manifest"] != ""
    assert identity.settings["train.epochs"] == 1


def test_the_record_says_that_training_diverged(make: Make, accelerator: Accelerator, tmp_path: Path) -> None:
    records = Recorder(tmp_path / "records")
    experiment = make("--optim.name", "sgd", "--optim.lr", "1e30")
    with pytest.raises(DivergedError):
        run.train(experiment, accelerator, records, QUIET)
    assert record(records).diverged


def test_a_run_whose_setup_fails_leaves_no_record(
    make: Make, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = Recorder(tmp_path / "records")

    def failing(*_: object) -> None:
        assert (records.folder / "state" / "run.json").exists(), "it could be resumed if it were killed here"
        raise OSError("the disk is gone")

    monkeypatch.setattr(run, "prepare", failing)
    with pytest.raises(OSError, match="the disk is gone"):
        run.train(make(), accelerator, records, QUIET)
    assert not (records.folder / "state" / "run.json").exists()
