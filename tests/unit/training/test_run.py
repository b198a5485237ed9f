"""A run as a whole: reproducible to the last bit, the right checkpoints, everything logged."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from accelerate import Accelerator
from fits import script_validation
from helpers import (
    QUIET,
    TEST,
    TRAIN,
    VAL,
    Make,
    Recorder,
    checkpoint_content,
    comparable,
    small_model,
)
from safetensors.torch import load_file

from runner.evaluation.inference import Inference
from runner.evaluation.metrics import scores_from_logits
from runner.models import checkpoint
from runner.training import run, setup
from runner.training.results import RunResult

Train: TypeAlias = Callable[..., tuple[RunResult, Recorder]]
DURATIONS = (
    *("epoch_seconds", "images_per_second", "system/checkpoints/seconds"),
    *("system/features/images_per_second", "system/features/saved_seconds"),
)
"""Metrics that differ between equal runs."""


def weights(records: Recorder, name: str) -> dict[str, torch.Tensor]:
    return load_file(records.folder / "checkpoints" / f"{name}.safetensors")


def assert_same_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_cached_features_change_no_bit(make: Make, train: Train) -> None:
    cached, cached_records = train(make("--features.store", "true"))
    computed, computed_records = train(make("--features.store", "false"))
    assert comparable(cached.history) == comparable(computed.history)
    assert (cached.best, cached.last) == (computed.best, computed.last)
    for name in ("best", "last"):
        assert_same_tensors(weights(cached_records, name), weights(computed_records, name))


def test_the_same_run_twice_is_the_same_in_every_bit(make: Make, train: Train, tmp_path: Path) -> None:
    torch.manual_seed(1)
    once, first = train(make())
    torch.manual_seed(2)
    again, second = train(make("--cache", str(tmp_path / "another cache")))
    assert comparable(once.history) == comparable(again.history)
    assert (once.best, once.last) == (again.best, again.last)
    for name in ("best", "last", "frozen"):
        contents = [
            checkpoint_content(records.folder / f"checkpoints/{name}.safetensors")
            for records in (first, second)
        ]
        assert contents[0][1] == contents[1][1]
        assert_same_tensors(contents[0][0], contents[1][0])
    points = [[point for point in records.points if point[0] not in DURATIONS] for records in (first, second)]
    assert points[0] == points[1]


def test_a_run_logs_files_and_metrics(make: Make, train: Train) -> None:
    result, records = train(make())
    assert set(records.artifacts) == {
        *("experiment.yaml", "manifest.csv", "environment.json", "predictions.csv"),
        *(f"checkpoints/{name}.safetensors" for name in ("best", "frozen", "last")),
        *("figures/loss.png", "figures/accuracy.png"),
    }
    losses = [(step, value) for name, step, value in records.points if name == "train/loss"]
    assert losses == [(epoch.number, epoch.train_loss) for epoch in result.history]
    final = {name: value for name, _, value in records.points}
    assert final["test/best/top1"] == result.best["top1"]
    assert final["test/last/top1"] == result.last["top1"]
    assert (result.last.images, result.history[0].val.images) == (TEST, VAL)


@pytest.mark.parametrize("best", ["top1", "balanced_accuracy"])
def test_the_best_checkpoint_is_the_model_of_the_best_epoch(
    make: Make, train: Train, monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator, best: str
) -> None:
    top1, balanced_accuracy = [0.5, 0.7, 0.7, 0.1], [0.5, 0.4, 0.8, 0.8]
    script_validation(monkeypatch, top1, balanced_accuracy)
    experiment = make("--train.best", best, "--train.epochs", "4", "--schedule.kind", "constant")
    result, records = train(experiment)
    number = 2 if best == "top1" else 3
    loaded = checkpoint.load(records.folder / "checkpoints" / "best.safetensors")
    assert loaded.epoch == result.best_epoch.number == number
    assert loaded.val["top1"] == 0.7
    assert checkpoint.load(records.folder / "checkpoints" / "last.safetensors").epoch == 4
    # A run that ends after that epoch ends with the same model.
    script_validation(monkeypatch, top1[:number], balanced_accuracy[:number])
    shorter = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, epochs=number))
    assert_same_tensors(weights(records, "best"), weights(train(shorter)[1], "last"))
    prepared = setup.prepare(experiment, accelerator, QUIET)
    features, labels = prepared.features.get("test", -1), prepared.manifest.labels("test")
    logits = Inference(loaded.model, accelerator, prepared.batch_size).logits(features, len(labels))
    assert scores_from_logits(logits, labels) == result.best


def test_checkpoints_of_a_run_that_fails_are_logged(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script_validation(monkeypatch, [0.5])  # there are no scores for the second epoch
    records = Recorder(tmp_path / "records")
    with pytest.raises(StopIteration):
        run.train(make(), accelerator, records, QUIET)
    assert checkpoint.load(records.folder / "checkpoints" / "best.safetensors").epoch == 1
    assert "checkpoints/best.safetensors" in records.artifacts
    assert "checkpoints/frozen.safetensors" in records.artifacts


def test_the_test_split_is_read_once_and_after_training(
    make: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner.features.cache import FeatureCache

    splits: list[str] = []
    get = FeatureCache.get

    def noted(self: FeatureCache, split: str, view: int) -> Any:
        splits.append(split)
        return get(self, split, view)

    monkeypatch.setattr(FeatureCache, "get", noted)
    train(make())
    assert splits == ["train", "val"] * 3 + ["test"]


@pytest.mark.parametrize(
    ("arch", "trainable"), [("vgg11", "all"), pytest.param("vgg11_bn", "features.11", marks=pytest.mark.slow)]
)
def test_fine_tuning_uses_the_same_loop(
    make: Make, train: Train, computed_images: list[int], arch: str, trainable: str
) -> None:
    words = ("--model.arch", arch, "--model.trainable", trainable, "--optim.lr", "0.001")
    constant = ("--augment.views", "none", "--schedule.kind", "constant", "--model.dropout", "0")
    result, records = train(make(*words, *constant))
    assert result.history[-1].train_loss < 0.7 * result.history[0].train_loss
    trained = weights(records, "last")
    initial = small_model(arch=arch, trainable=trainable).state_dict()
    assert ("features.0.weight" in trained) == (trainable == "all")
    changed = [
        name
        for name, value in trained.items()
        if name.startswith("features.") and not torch.equal(value, initial[name])
    ]
    assert any(name.startswith("features.18.") for name in changed)
    assert sum(computed_images) == (TRAIN + VAL + TEST if trainable != "all" else 0)


@pytest.mark.slow
def test_frozen_batch_normalization_stays_as_it_is(make: Make, train: Train) -> None:
    words = ("--model.arch", "vgg11_bn", "--optim.lr", "0.003", "--schedule.kind", "constant")
    cached, records = train(make(*words))
    computed, _ = train(make(*words, "--features.store", "false"))
    assert comparable(cached.history) == comparable(computed.history)
    assert cached.history[-1].train_loss < cached.history[0].train_loss
    assert not weights(records, "frozen")["features.1.running_mean"].any()


def test_batch_normalization_accepts_empty_micro_batches(make: Make, train: Train) -> None:
    words = ("--model.arch", "vgg11_bn", "--model.trainable", "all", "--train.epochs", "1")
    result, _ = train(
        make(*words, "--train.accumulate", "3")
    )  # the last batch of 18 images: 2 in three parts
    assert math.isfinite(result.history[0].train_loss)
    assert math.isfinite(result.history[0].val["loss"])


def test_imported_objects_are_left_out_of_garbage_collections(make: Make, accelerator: Accelerator) -> None:
    setup.prepare(make(), accelerator, QUIET)
    assert gc.get_freeze_count() > 10_000
