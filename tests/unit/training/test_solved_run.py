"""A run whose head is solved: its records, its model, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TypeAlias

import numpy as np
import psutil
import pytest
import torch
from helpers import TEST, VAL, Make, Recorder, checkpoint_content, comparable
from PIL import Image

from runner.config.schema import Experiment
from runner.explain import cam
from runner.models import checkpoint
from runner.portable.classifier import Classifier
from runner.serving import packaging
from runner.training.results import RunResult
from runner.utils.errors import UserError

Train: TypeAlias = Callable[..., tuple[RunResult, Recorder]]
SOLVED = (
    *("--model.head", "linear", "--model.pool", "[1, 2]", "--model.power", "0.5", "--model.norm", "l2"),
    *("--augment.views", "none", "--train.solver", "ridge"),
)


@pytest.fixture
def solved(make: Make) -> Experiment:
    return make(*SOLVED)


def test_a_run_solves_in_one_epoch_and_logs_its_path(solved: Experiment, train: Train) -> None:
    result, records = train(solved)
    assert len(result.history) == 1
    assert (result.best_epoch.number, result.history[0].val.images, result.best.images) == (1, VAL, TEST)
    assert result.best["top1"] == 1
    assert {"penalties.csv", "figures/penalties.png", "predictions.csv"} <= set(records.artifacts)
    assert not {"figures/loss.png", "figures/accuracy.png"} & set(records.artifacts)
    (penalty,) = [value for name, _, value in records.points if name == "penalty"]
    assert 1e-6 <= penalty <= 1e5
    with Image.open(records.folder / "figures/penalties.png") as picture:
        assert picture.width > 500


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_the_same_run_twice_is_the_same_in_every_bit(make: Make, train: Train, solver: str) -> None:
    experiment = make(*SOLVED, "--train.solver", solver, "--train.penalty", "[0.1, 1, 10]")
    (once, first), (again, second) = train(experiment), train(experiment)
    assert comparable(once.history) == comparable(again.history)
    tensors = [
        checkpoint_content(each.folder / "checkpoints/best.safetensors")[0] for each in (first, second)
    ]
    assert all(torch.equal(value, tensors[1][name]) for name, value in tensors[0].items())


@pytest.mark.parametrize(
    "variants",
    [
        pytest.param(("--augment.tta", "flips"), marks=pytest.mark.slow),
        pytest.param(("--augment.scales", "[32, 64]"), marks=pytest.mark.slow),
        pytest.param(
            ("--augment.scales", "[32, 48, 64]", "--augment.tta", "flips+scales"), marks=pytest.mark.slow
        ),
        pytest.param(("--model.pooled_layers", "[features.15, features.20]"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_variants_are_part_of_the_features_and_of_the_model(
    make: Make, train: Train, variants: tuple[str, ...]
) -> None:
    cached, records = train(make(*SOLVED, *variants))
    computed, _ = train(make(*SOLVED, *variants, "--features.store", "false"))
    assert comparable(cached.history) == comparable(computed.history)
    loaded = checkpoint.load(records.folder / "checkpoints/best.safetensors")
    description = packaging.describe(loaded.model, loaded.inference, epoch=1, val=loaded.val)
    classifier = packaging.to_classifier(loaded.model, description, "cpu")
    assert classifier.model.variant_spec == loaded.model.variant_spec
    image = Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8))
    size = 64 if "--augment.scales" in variants else 32
    images = classifier.transform_image(image)[None]
    assert images.shape == (1, 3, size, size)
    assert torch.allclose(classifier.logits(images), loaded.model(images), atol=1e-4)


def test_standardization_is_in_the_weights(make: Make, train: Train, tmp_path: Path) -> None:
    result, records = train(make(*SOLVED, "--train.standardize", "true"))
    assert result.best["top1"] == 1
    loaded = checkpoint.load(records.folder / "checkpoints/best.safetensors")
    description = packaging.describe(loaded.model, loaded.inference, epoch=1, val=loaded.val)
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    packaging.save_model(loaded.model, description, images[0], tmp_path / "model")
    packaged = Classifier.load(tmp_path / "model" / "artifacts" / "classifier", "cpu")
    assert torch.allclose(packaged.logits(images), loaded.model(images), atol=1e-4)


def test_a_refit_changes_the_model_and_not_the_validation_scores(make: Make, train: Train) -> None:
    penalty = ("--train.penalty", "10")
    alone, first = train(make(*SOLVED, *penalty))
    refitted, second = train(make(*SOLVED, *penalty, "--train.refit", "true"))
    assert alone.best_epoch.val == refitted.best_epoch.val
    weights = [
        checkpoint_content(each.folder / "checkpoints/best.safetensors")[0]["classifier.2.weight"]
        for each in (first, second)
    ]
    assert not torch.allclose(*weights)


def test_the_checkpoint_is_an_ordinary_model(solved: Experiment, train: Train, tmp_path: Path) -> None:
    result, records = train(solved)
    loaded = checkpoint.load(records.folder / "checkpoints/best.safetensors")
    description = packaging.describe(loaded.model, loaded.inference, epoch=1, val=loaded.val)
    classifier = packaging.to_classifier(loaded.model, description, "cpu")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    logits = classifier.logits(images)
    assert torch.allclose(logits, loaded.model(images), atol=1e-4)
    packaging.save_model(loaded.model, description, images[0], tmp_path / "model")
    packaged = Classifier.load(tmp_path / "model" / "artifacts" / "classifier", "cpu")
    assert torch.equal(packaged.logits(images), logits)
    maps = cam.explain(loaded.model, images, logits.argmax(1).tolist(), layer="features.10")
    assert maps.shape == (3, 32, 32)
    assert 0.9 < maps.max() <= 1
    assert result.best_epoch.val["top1"] == loaded.val["top1"]


def test_too_little_memory_is_refused_before_features_are_computed(
    solved: Experiment, train: Train, computed_images: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    with pytest.raises(UserError, match=r"27 images with 2,560 features each needs"):
        train(solved)
    assert computed_images == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model.head", "pooled"), "train.solver=ridge needs model.head=linear; it is pooled"),
        (("--augment.views", "2"), "train.solver=ridge needs augment.views=none; it is 2"),
        (("--model.trainable", "all"), "train.solver=ridge needs model.trainable=head; it is all"),
        (("--train.penalty", "0"), "train.penalty"),
        (("--train.penalty", "[1, -1]"), "train.penalty"),
        (("--train.penalty", "[]"), "train.penalty"),
        (("--model.pool", "[]"), "model.pool"),
        (("--train.solver", "logistic", "--train.penalty_by", "leave_one_out"), "needs train.solver=ridge"),
        (("--train.solver", "gradient", "--train.refit", "true"), "train.refit needs a solver"),
    ],
)
def test_what_cannot_work_is_refused(make: Make, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        make(*SOLVED, *words)
    assert message in str(error.value)


def test_a_linear_head_may_be_trained_by_steps_too(make: Make, train: Train) -> None:
    result, _ = train(make(*SOLVED, "--train.solver", "gradient", "--optim.lr", "0.1"))
    assert len(result.history) == 3
    assert result.best["top1"] > 0.5
