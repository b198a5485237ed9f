"""The schema: its defaults, and the rules between settings."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from runner.config.augment_schema import AugmentConfig
from runner.config.data_schema import DataConfig, SplitConfig
from runner.config.schema import (
    Experiment,
    ModelConfig,
    Normalization,
    OptimConfig,
    ScheduleConfig,
    TrainConfig,
)

DIGITS = DataConfig(kind="digits")


def test_the_defaults_are_the_published_report() -> None:
    report = Experiment(data=DataConfig(root="anywhere"))
    assert report.data.kind == "caltech101"
    assert not report.data.background
    assert report.split == SplitConfig(by="fraction", train=0.5, val=0.25, test=0.25)
    assert report.augment == AugmentConfig(
        views="fresh",
        resize=256,
        crop=224,
        scale=(0.8, 1.0),
        ratio=(0.75, 4 / 3),
        flip=0.5,
        rotation=15.0,
        brightness=0.0,
        contrast=0.0,
        saturation=0.0,
        hue=0.0,
        interpolation="bilinear",
        rotation_interpolation="nearest",
    )
    assert report.model == ModelConfig(
        arch="vgg16",
        weights="VGG16_Weights.IMAGENET1K_V1",
        head="classifier",
        width=256,
        dropout=0.4,
        normalize="statistics",
        trainable="head",
    )
    assert report.optim == OptimConfig(name="adam", lr=0.01, weight_decay=0.0, groups={})
    assert report.schedule == ScheduleConfig(kind="reduce_on_drop", factor=5.0, reductions=3)
    assert report.train == TrainConfig(
        epochs=30,
        batch_size=64,
        accumulate=1,
        clip=0.0,
        label_smoothing=0.0,
        class_weights=False,
        sampling="shuffled",
        best="top1",
    )


def test_an_experiment_cannot_be_changed() -> None:
    experiment = Experiment(data=DIGITS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.train.epochs = 3  # type: ignore[misc]


def test_an_experiment_is_a_plain_value() -> None:
    numbers = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    experiment = Experiment(data=DIGITS, model=ModelConfig(normalize=numbers))
    assert pickle.loads(pickle.dumps(experiment)) == experiment
    changed = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, epochs=3))
    assert (changed.train.epochs, changed == experiment) == (3, False)


@pytest.mark.parametrize(
    ("create", "named"),
    [
        (lambda: Experiment(), "data.root"),
        (lambda: Experiment(data=DataConfig(kind="folder")), "data.root"),
        (lambda: Experiment(name="a/b", data=DIGITS), "name"),
        (lambda: DataConfig(kind="digits", root="x"), "data.root"),
        (lambda: DataConfig(kind="folder", root="x", download=True), "data.download"),
        (lambda: DataConfig(kind="folder", root="x", background=True), "data.background"),
        (lambda: DataConfig(kind="none"), "data.kind"),
        (lambda: SplitConfig(train=0.9), "split.train"),
        (lambda: AugmentConfig(crop=300), "augment.crop"),
        (lambda: ModelConfig(weights=None, normalize="weights"), "model.weights"),
        (lambda: OptimConfig(name="sdg"), "optim.name"),
        (lambda: ScheduleConfig(kind="none"), "schedule.kind"),
        (lambda: TrainConfig(accumulate=65), "train.accumulate"),
    ],
)
def test_rules_between_settings_hold_in_python_too(create: object, named: str) -> None:
    with pytest.raises(ValueError, match=named) as refused:
        create()  # type: ignore[operator]
    assert "\n" not in str(refused.value)
