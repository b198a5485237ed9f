"""Techniques of fine-tuning on one process and on two: the same losses and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUIET, Recorder
from pictures import small_experiment
from two_processes import finish_two, start_two

from runner.config.parser import parse
from runner.tracking.tracker import Tracker
from runner.training import devices, run

pytestmark = pytest.mark.slow

TECHNIQUES: dict[str, tuple[str, ...]] = {
    "mixup": ("--train.mixup", "0.4"),
    "mixup of images": ("--train.mixup", "0.4", "--model.trainable", "all"),
    "cutmix": ("--train.cutmix", "1.0", "--model.trainable", "last:1", "--train.accumulate", "2"),
    "ema": ("--train.average", "ema", "--train.ema_decay", "0.8"),
    "swa": ("--train.average", "swa", "--train.swa_start", "0.3"),
    "layer decay, warm-up": (
        *("--model.trainable", "last:2", "--optim.layer_decay", "0.5", "--optim.decay_norm", "false"),
        *("--optim.weight_decay", "0.01", "--schedule.kind", "cosine", "--schedule.warmup", "0.5"),
    ),
    "drop path": (
        *("--model.arch", "timm/convnext_atto", "--model.weights", "null", "--model.pool", "1"),
        *("--model.trainable", "last:3", "--model.drop_path", "0.5"),
    ),
    "batch norm": ("--model.arch", "vgg11_bn", "--model.weights", "null", "--model.trainable", "last:1"),
    "batch norm in parts": (
        *("--model.arch", "timm/regnetx_002", "--model.weights", "null", "--model.pool", "1"),
        *("--model.trainable", "last:2", "--train.accumulate", "2", "--train.average", "ema"),
        *("--train.recompute", "true"),
    ),
    "patience": ("--train.patience", "1"),
    "stages": ("--train.stages", "[{epochs: 1, trainable: head}, {epochs: 2, trainable: last:1, lr: 0.002}]"),
    "stages, averaged": (
        *("--train.stages", "[{epochs: 2, trainable: last:1}, {epochs: 1, trainable: all}]"),
        *("--train.average", "ema", "--train.ema_decay", "0.8", "--train.clip", "0.5"),
    ),
}
Points = dict[tuple[str, int], float]


def train_each(images: Path, place: Path) -> int:
    """Train with each technique on all processes of this launch; the main one writes what was logged."""
    logged = {}
    for name, technique in TECHNIQUES.items():
        words = small_experiment(images, place / "cache", place / "mlruns")
        # Two processes cannot share batches of seven evenly, nor the four images of the last one.
        words += ["--train.epochs", "3", "--train.batch_size", "7", "--features.compile", "false"]
        words += ["--optim.name", "sgd", "--optim.lr", "0.01", "--schedule.kind", "constant", *technique]
        experiment = parse(words)[0]
        accelerator = devices.create_accelerator(experiment)
        records = Recorder(place / name) if accelerator.is_main_process else Tracker()
        run.train(experiment, accelerator, records, QUIET)
        if isinstance(records, Recorder):
            logged[name] = {(metric, step): value for metric, step, value in records.points}
    if logged:
        torch.save(logged, place / "logged")
    accelerator.end_training()
    return 0


@pytest.fixture(scope="module")
def logged(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Points]]:
    """What the runs of all techniques logged, on one process and on two that share nothing with it but the images."""
    alone, together = (tmp_path_factory.mktemp(each) for each in ("one", "two"))
    processes = start_two(together, train_each, images, together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_each(images, alone)
    finish_two(together, processes)
    return [torch.load(place / "logged", weights_only=True) for place in (alone, together)]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_two_processes_compute_what_one_does(name: str, logged: list[dict[str, Any]]) -> None:
    one, two = (each[name] for each in logged)
    assert one.keys() == two.keys()
    compared = 0
    for (metric, step), value in one.items():
        if metric.startswith(("train/", "val/", "test/", "lr")):
            assert two[metric, step] == pytest.approx(value, rel=1e-5, abs=1e-6), (metric, step)
            compared += 1
    assert compared > 10
