"""What is refused in one sentence with exit status 2, before or after the launch."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from commands import (
    client_of,
    command,
    one_sentence,
    runs_of,
)
from safetensors.torch import save_file
from trained import TrainedRun

from runner import train
from runner.utils.exit_status import run_main

LONG = ("--train.epochs", "100000", "--schedule.kind", "constant")
"""Settings of a run that has to be stopped."""
CURVES = (
    *("train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "val/balanced_accuracy"),
    *("lr", "images_per_second", "epoch_seconds"),
)


# What is refused before anything is spawned


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--train.epoch", "3"], "did you mean 'train.epochs'"),
        (["train", "--epoch", "3"], "did you mean"),
        (["train", "--train.epochs", "three"], "train.epochs"),
        (["train", "--train.epochs", "0"], "train.epochs"),
        (["train", "--optim.lr", "-1"], "optim.lr"),
        (["train", "--model.arch", "vgg12"], "model.arch"),
        (["train", "stray"], "'stray'"),
        (["train", "--config", "caltech101-poled"], "did you mean 'caltech101-pooled'"),
        (["train", "--config"], "--config"),
        (["train", "--data.kind", "folder"], "data.root"),
        (["train", "--data.kind", "folder", "--data.root", "/no/such/place"], "/no/such/place"),
        (["train", "--model.weights", "/no/weights.pth"], "/no/weights.pth"),
        (["train", "--model.weights", "VGG11_Weights.IMAGENET1K_V1"], "VGG16_Weights"),
        (["train", "-n", "0"], "-n"),
        (["train", "-n", "two"], "'two'"),
        (["train", "-n"], "-n/--processes"),
        (["train", "--processes=-1"], "--processes"),
        (["train", "--train.solver", "ridge"], "train.solver=ridge needs model.head=linear"),
        (["train", "--train.penalty", "0"], "train.penalty"),
        (["train", "--train.standardize", "true"], "train.standardize needs a solver"),
        (["evaluate"], "RUN"),
        (["evaluate", "latest", "--split", "tset"], "tset"),
        (["evaluate", "latest", "-n", "0"], "-n"),
        (["bench", "nothing"], "nothing"),
        (["bench"], "throughput"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_bad_words_are_refused(refused: Callable[..., str], words: list[str], message: str) -> None:
    assert message in refused(words)


def test_one_class_is_refused(refused: Callable[..., str], pictures: Path, words: list[str]) -> None:
    for label in ("green", "red"):
        for path in (pictures / label).iterdir():
            path.unlink()
        (pictures / label).rmdir()
    assert "one class (blue)" in refused(["train", *words])


def test_a_class_that_a_solver_cannot_learn_is_refused(
    refused: Callable[..., str], pictures: Path, tmp_path: Path, words: list[str]
) -> None:
    divided = tmp_path / "divided"
    for part, classes in (("train", ["blue", "green"]), ("val", ["red"])):
        for label in classes:
            shutil.copytree(pictures / label, divided / part / label)
    solver = ("--model.head", "linear", "--augment.views", "none", "--train.solver", "ridge")
    message = refused(["train", *words, *solver, "--data.root", str(divided)])
    assert "The data have no training images for class 'red'" in message


def test_an_empty_file_is_refused(refused: Callable[..., str], pictures: Path, words: list[str]) -> None:
    (pictures / "red" / "03.png").write_bytes(b"")
    assert f"{pictures / 'red' / '03.png'} is empty" in refused(["train", *words])


def test_a_folder_without_classes_is_refused(
    refused: Callable[..., str], tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "bare").mkdir()
    assert "class folders" in refused(["train", *words, "--data.root", str(tmp_path / "bare")])


def test_a_broken_experiment_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [1, 2\n")
    assert f"{broken} is not valid YAML" in refused(["train", "--config", str(broken)])


def test_a_tracking_server_out_of_reach_is_refused(
    refused: Callable[..., str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    assert f"http://127.0.0.1:{port} does not answer" in refused(["train", *words])
    assert time.monotonic() - began < 10


# What only the started process can refuse


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def convolutions() -> dict[str, torch.Tensor]:
    """Tensors under the names of torchvision's vgg11, without a classifier."""
    features = torchvision.models.vgg11(weights=None, init_weights=False).features
    return {f"features.{name}": torch.zeros_like(value) for name, value in features.state_dict().items()}


def malicious(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".pth")
    path.write_bytes(pickle.dumps({**tensors, "classifier.0.weight": Malice(path.with_name("harmed"))}))
    return str(path)


def not_a_number(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    name = "features.0.bias"
    path = path.with_suffix(".safetensors")
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, path)
    return str(path)


def another_shape(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".safetensors")
    save_file({**tensors, "features.0.weight": torch.zeros(32, 3, 3, 3)}, path)
    return str(path)


def cut_short(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".safetensors")
    save_file(tensors, path)
    os.truncate(path, 100_000)
    return str(path)


def incomplete(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".pth")
    torch.save({name: value for name, value in tensors.items() if name != "features.3.weight"}, path)
    return str(path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (malicious, "was not loaded"),
        (not_a_number, "features.0.bias holds NaN"),
        (another_shape, "features.0.weight has the shape [32, 3, 3, 3]"),
        (cut_short, "is not a complete .safetensors file"),
        (incomplete, "lacks features.3.weight"),
    ],
)
def test_bad_weights_are_refused(
    small: list[str],
    tmp_path: Path,
    convolutions: dict[str, torch.Tensor],
    capfd: pytest.CaptureFixture[str],
    make: Callable[[Path, dict[str, torch.Tensor]], str],
    message: str,
) -> None:
    weights = make(tmp_path / "weights", convolutions)
    assert run_main(lambda: train.main([*small, "--model.weights", weights])) == 2
    sentence = one_sentence(capfd.readouterr().err)
    assert message in sentence
    assert weights in sentence
    assert not (tmp_path / "harmed").exists()
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "FAILED"
    assert run.data.tags["runner.reason"] == sentence


@pytest.mark.slow
def test_a_failure_behind_the_launch_has_the_same_status(
    small: list[str], tmp_path: Path, convolutions: dict[str, torch.Tensor]
) -> None:
    weights = not_a_number(tmp_path / "weights", convolutions)
    words = ["train", *small, "--model.weights", weights]
    outcome = command([sys.executable, "-m", "runner.cli.main", *words])
    assert outcome.returncode == 2
    assert "features.0.bias holds NaN" in one_sentence(outcome.stderr)


def test_an_unknown_run_is_refused(trained_run: TrainedRun, capfd: pytest.CaptureFixture[str]) -> None:
    from runner.cli import evaluate

    words = ["no-such-run", "--tracking.root", trained_run.tracking]
    assert run_main(lambda: evaluate.main(words)) == 2
    sentence = one_sentence(capfd.readouterr().err)
    assert "no-such-run" in sentence
    assert trained_run.run_id[:8] in sentence
