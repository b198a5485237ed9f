"""Runs of each family of networks: stored features, processes, and interruptions change no result."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from commands import runs_of
from families import FAMILIES
from helpers import QUIET, Make, Recorder, checkpoint_content, comparable
from interrupted_fits import interrupt_run, without_times
from killed_runs import EVERY_STEP, Kill, Workspace, assert_same_run, train_whole
from loaded import INFERENCE
from stores import open_store

from runner import train as train_script
from runner.config.tree import as_tree
from runner.serving.packaging import describe, to_classifier
from runner.serving.predictor import LoadedModel
from runner.training import run
from runner.training.resume import ResumePoint
from runner.utils.errors import UserError

SHORT = ("--train.epochs", "2", "--augment.views", "none", "--features.compile", "false")
DURATIONS = ("epoch_seconds", "images_per_second", "system/")
EACH = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in ("MobileNetV3", "ViT")))
        for name in FAMILIES
    ],
)


@pytest.fixture(autouse=True)
def _no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.training.curves.draw_curves", lambda *_: None)


def points(records: Recorder) -> set[tuple[str, int, float]]:
    """What was logged, without durations."""
    return {point for point in records.points if not point[0].startswith(DURATIONS)}


def assert_same_checkpoints(one: Recorder, two: Recorder) -> None:
    """Check that the files of two runs hold the same tensors."""
    for file in ("best", "last"):
        (mine,), (theirs,) = (list(each.folder.rglob(f"{file}.safetensors")) for each in (one, two))
        first, second = checkpoint_content(mine)[0], checkpoint_content(theirs)[0]
        assert first.keys() == second.keys()
        assert all(torch.equal(value, second[key]) for key, value in first.items())


@EACH
def test_stored_features_change_no_bit(name: str, make: Make, train: Callable[..., Any]) -> None:
    words = (*FAMILIES[name].words(), *SHORT)
    stored, records = train(make(*words))
    computed, others = train(make(*words, "--features.store", "false"))
    assert comparable(stored.history) == comparable(computed.history)
    assert (stored.best, stored.last) == (computed.best, computed.last)
    assert points(records) == points(others)
    assert_same_checkpoints(records, others)


@EACH
def test_an_interrupted_run_continues_to_the_same_result(
    name: str, make: Make, accelerator: Accelerator, tmp_path: Path
) -> None:
    words = (*FAMILIES[name].words(), *SHORT, *EVERY_STEP, "--model.trainable", "last:1")
    experiment = make(*words)
    first, records = Recorder(tmp_path / "whole"), Recorder(tmp_path / "stopped")
    whole = run.train(experiment, accelerator, first, QUIET)
    snapshot = interrupt_run(experiment, accelerator, records, 4)
    start = ResumePoint(as_tree(experiment), "0123456789", "small", snapshot)
    result = run.train(experiment, accelerator, records, QUIET, start)
    assert without_times(result.history) == without_times(whole.history)
    assert (result.best, result.last) == (whole.best, whole.last)
    assert points(records) == points(first)
    assert_same_checkpoints(first, records)


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("ResNet", marks=pytest.mark.long), "ViT"])
def test_a_killed_run_continues_to_the_same_result(
    name: str, new_workspace: Callable[[Path], Workspace], tmp_path: Path
) -> None:
    spaces = [new_workspace(tmp_path / each) for each in ("whole", "killed")]
    for space in spaces:
        space.words += [*FAMILIES[name].words(), *SHORT[2:], "--model.trainable", "last:1"]
    whole = train_whole(spaces[0])
    kill = Kill(r"replace .*/state/000001", 2, after=True)
    assert spaces[1].train(*EVERY_STEP, kill=kill) == -signal.SIGKILL, spaces[1].output
    spaces[1].finish()
    assert_same_run(spaces[1], whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.long] * (name not in ("ResNet", "EfficientNet-Lite", "ViT")))
        for name in FAMILIES
    ],
)
def test_an_onnx_file_computes_what_the_model_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from runner.serving import onnx

    family = FAMILIES[name]
    model = family.model(classes=tuple("abcdefg")).eval()
    transform = {"resize": family.size, "crop": family.size, "interpolation": "bilinear"}
    classifier = to_classifier(
        model, describe(model, {**INFERENCE, "transform": transform}, epoch=1, val={}), "cpu"
    )
    loaded = LoadedModel(classifier, "a test model")
    onnx.export_onnx(loaded, tmp_path / "model.onnx")
    assert onnx.compare_onnx(loaded, tmp_path / "model.onnx") <= onnx.TOLERANCE


@pytest.mark.usefixtures("plain_environment")
def test_a_model_that_cannot_be_built_creates_no_run(small: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="last:99"):
        train_script.main([*small, "--model.trainable", "last:99"])
    assert runs_of(open_store(tmp_path / "mlruns")[1]) == []
