"""What the runner promises holds on a GPU: results, resuming, stored features, maps, sentences."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from accelerate import Accelerator
from commands import one_sentence, runner, user_environment
from helpers import QUIET, Make, Place, Recorder, comparable, small_model
from interrupted_fits import interrupt_run, without_times
from trained import TrainedRun

from benchmarks.support import stacked_heads
from runner.config.tree import as_tree
from runner.explain import cam
from runner.portable.classifier import Classifier
from runner.training import run
from runner.training.results import RunResult
from runner.training.resume import ResumePoint
from runner.utils.errors import UserError

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]
Train: TypeAlias = Callable[..., tuple[RunResult, Recorder]]
TRAINABLE = ("head", "features.16", "all")
"""The head, the last convolutions as well, everything."""


def images(count: int, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def runs_command(place: Place, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`runs_command("train", "--train.epochs", "1", gpus="0")`: a command of the small experiment that may use GPUs."""

    def start(verb: str, *words: str, gpus: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = user_environment()
        if torch.cuda.is_available():
            del environment["ACCELERATE_USE_CPU"]
        if gpus is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpus
        line = runner(verb, *place(tmp_path), *words)
        return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=110)

    return start


@pytest.fixture(params=["no", "bf16", "fp16"])
def precise(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator) -> str:
    """A precision in which the accelerator computes."""
    if request.param == "fp16" and accelerator.device.type == "cpu":
        pytest.skip("a CPU has no fp16")
    monkeypatch.setattr(accelerator.state, "_mixed_precision", request.param)
    return str(request.param)


@pytest.mark.usefixtures("precise")
def test_a_run_learns_the_pictures(make: Make, train: Train) -> None:
    result, _ = train(make("--train.epochs", "6"))
    assert result.best["top1"] >= 0.8


@pytest.mark.parametrize("trainable", TRAINABLE)
def test_the_same_run_twice_has_the_same_results(
    make: Make, train: Train, tmp_path: Path, trainable: str
) -> None:
    once, _ = train(make("--model.trainable", trainable))
    again, _ = train(make("--model.trainable", trainable, "--cache", str(tmp_path / "another cache")))
    assert comparable(once.history) == comparable(again.history)
    assert (once.best, once.last) == (again.best, again.last)


@pytest.mark.usefixtures("precise")
def test_stored_features_change_no_bit(make: Make, train: Train) -> None:
    stored, _ = train(make("--features.store", "true"))
    computed, _ = train(make("--features.store", "false"))
    assert comparable(stored.history) == comparable(computed.history)
    assert (stored.best, stored.last) == (computed.best, computed.last)


@pytest.mark.parametrize("trainable", TRAINABLE)
@pytest.mark.parametrize("step", [1, 4])
def test_an_interrupted_run_continues_to_the_same_result(
    make: Make,
    accelerator: Accelerator,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
    trainable: str,
) -> None:
    monkeypatch.setattr("runner.training.curves.draw_curves", lambda *_: None)
    experiment = make("--checkpoints.minutes", "0", "--model.trainable", trainable)
    whole = run.train(experiment, accelerator, Recorder(tmp_path / "whole"), QUIET)
    records = Recorder(tmp_path / "stopped")
    snapshot = interrupt_run(experiment, accelerator, records, step)
    start = ResumePoint(as_tree(experiment), "0123456789", "small", snapshot)
    result = run.train(experiment, accelerator, records, QUIET, start)
    assert without_times(result.history) == without_times(whole.history)
    assert (result.best, result.last) == (whole.best, whole.last)


def test_features_are_those_of_the_cpu(accelerator: Accelerator) -> None:
    model = small_model().eval()
    expected = model(images(8))
    torch.testing.assert_close(
        model.to(accelerator.device)(images(8).to(accelerator.device)).cpu(), expected, rtol=1e-2, atol=1e-3
    )


def test_predictions_are_those_of_the_cpu_and_do_not_depend_on_the_batch(
    trained_run: TrainedRun, accelerator: Accelerator
) -> None:
    folder = next(trained_run.logged_model().rglob("model.json")).parent
    on_device, on_cpu = (Classifier.load(folder, device) for device in (accelerator.device, "cpu"))
    batch = images(11, 32)
    logits = on_device.logits(batch)
    torch.testing.assert_close(logits, on_cpu.logits(batch), rtol=1e-2, atol=1e-3)
    assert torch.equal(torch.cat([on_device.logits(each) for each in batch.split(1)]), logits)


@pytest.mark.parametrize("method", ["gradcam", "eigencam", "scorecam"])
def test_maps_are_those_of_the_cpu(accelerator: Accelerator, method: str) -> None:
    model = small_model(trainable="all", pool=2).eval()
    expected = cam.explain(model, images(3), [0, 1, 2], method=method)
    maps = cam.explain(model.to(accelerator.device), images(3), [0, 1, 2], method=method)
    assert abs(maps - expected).mean() < 0.01


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_a_head_is_solved(make: Make, train: Train, solver: str) -> None:
    words = ("--model.head", "linear", "--augment.views", "none", "--train.solver", solver)
    scales = (
        "--augment.scales",
        "[32, 64]",
        "--augment.tta",
        "flips+scales",
        "--augment.crop_mode",
        "squash",
    )
    result, _ = train(make(*words, *scales))
    assert result.best["top1"] >= 0.8


def test_too_large_a_batch_is_refused_in_a_sentence(make: Make, train: Train, on_gpu: torch.device) -> None:
    words = ("--features.batch_size", "4096", "--augment.crop", "224", "--augment.resize", "224")
    torch.cuda.set_per_process_memory_fraction(0.01)  # less than a batch needs
    try:
        with pytest.raises(UserError, match=r"The GPU .*features\.batch_size"):
            train(make(*words))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_automatic_batch_fits_into_the_memory_that_there_is(
    make: Make, train: Train, on_gpu: torch.device
) -> None:
    words = ("--train.epochs", "6", "--augment.crop", "224", "--augment.resize", "224")
    torch.cuda.set_per_process_memory_fraction(0.01)  # less than 256 images of 224 px need in float32
    try:
        result, _ = train(make(*words))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert result.best["top1"] >= 0.8


def test_a_command_uses_the_gpu_and_says_so(
    runs_command: Callable[..., subprocess.CompletedProcess[str]], on_gpu: torch.device
) -> None:
    outcome = runs_command("train", "--train.precision", "auto")
    assert outcome.returncode == 0, outcome.stderr
    assert torch.cuda.get_device_name() in outcome.stdout


def test_more_processes_than_gpus_are_refused(
    runs_command: Callable[..., subprocess.CompletedProcess[str]], on_gpu: torch.device
) -> None:
    outcome = runs_command("train", "-n", str(torch.cuda.device_count() + 1))
    assert outcome.returncode == 2
    assert "GPU" in one_sentence(outcome.stderr)


def test_without_visible_gpus_the_cpu_is_used(
    runs_command: Callable[..., subprocess.CompletedProcess[str]], on_gpu: torch.device
) -> None:
    outcome = runs_command("train", "--train.epochs", "1", gpus="")
    assert outcome.returncode == 0, outcome.stderr
    assert "CPU" in outcome.stdout


def test_heads_trained_together_are_those_trained_one_by_one(accelerator: Accelerator) -> None:
    heads, data = stacked_heads.experiments(3, 1, 1), stacked_heads.synthetic_data(1, accelerator.device)
    alone, together = (
        way(heads, data, accelerator)
        for way in (stacked_heads.train_one_by_one, stacked_heads.train_together)
    )
    assert stacked_heads.largest_difference(alone, together) < 1e-4
