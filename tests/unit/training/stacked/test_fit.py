"""Stacked heads get the results that they get alone.

For products of fewer than 400 multiplications torch adds in another order, so the heads are not that small.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fits import TensorFeatures
from helpers import Make, small_model
from torch import Tensor

from runner.config.schema import Experiment
from runner.training.callbacks.base import Callback
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.fit_state import FitState
from runner.training.loop import fit
from runner.training.results import EpochResult
from runner.training.stacked.compatible import stack_key
from runner.training.stacked.fit import fit_stacked
from runner.training.stacked.trainer import StackedHead
from runner.utils.errors import DivergedError

IMAGES, FEATURES = 70, 512
POOLED = ("--model.trainable", "head", "--model.head", "pooled", "--model.width", "32")
BASE = (*POOLED, "--train.epochs", "4", "--train.batch_size", "16")
HEADS: tuple[tuple[str, ...], ...] = (
    ("--optim.lr", "0.01", "--model.dropout", "0.5"),
    ("--optim.lr", "0.001", "--optim.weight_decay", "0.3", "--model.dropout", "0"),
    ("--optim.lr", "0.003", "--train.label_smoothing", "0.2", "--model.dropout", "0.5"),
    ("--optim.lr", "0.01", "--model.dropout", "0.25", "--model.width", "24"),
    ("--optim.lr", "0.01", "--model.dropout", "0.5", "--seed.train", "7"),
    ("--optim.lr", "0.02", "--train.label_smoothing", "0.1", "--model.width", "24", "--seed.train", "7"),
)
"""Settings in which heads of a stack differ."""


@dataclass
class Training(Callback):
    """What became of a head: its epochs, and its tensors after each."""

    history: list[EpochResult] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    ends: list[Exception | None] = field(default_factory=list)
    stop_after: int = 100
    """Epoch at whose end the head is stopped by an error."""

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        self.on_epoch(result, state.model.trainable_state())

    def on_epoch(self, result: EpochResult, weights: dict[str, Tensor]) -> None:
        self.history.append(result)
        self.weights.append({name: value.detach().clone() for name, value in weights.items()})
        if result.number == self.stop_after:
            raise ValueError("enough")


def data(validation_images: int = 50) -> FitData:
    """Features that are hard to tell apart; the validation split is in batches of 8."""
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, 3, (IMAGES + validation_images,), generator=generator)
    centers = torch.randn(3, FEATURES, generator=generator)
    values = centers[labels] + 6 * torch.randn(len(labels), FEATURES, generator=generator)

    def split(part: slice) -> LabeledFeatures:
        views = [TensorFeatures(values[part]), TensorFeatures(values[part] + 0.1)]
        return LabeledFeatures(lambda epoch: views[epoch % 2], labels[part].numpy())

    return FitData(split(slice(0, IMAGES)), split(slice(IMAGES, None)), 8)


def model_of(experiment: Experiment) -> Any:
    settings = experiment.model
    fields = {"head": settings.head, "width": settings.width, "dropout": settings.dropout}
    return small_model(experiment.seed.train, **fields)


def alone(experiments: Sequence[Experiment], values: FitData, accelerator: Accelerator) -> list[Training]:
    trainings = []
    for experiment in experiments:
        trainings.append(training := Training())
        fit(experiment, model_of(experiment), values, accelerator, [training])
    return trainings


def together(
    experiments: Sequence[Experiment],
    values: FitData,
    accelerator: Accelerator,
    trainings: Sequence[Training] = (),
) -> list[Training]:
    trainings = trainings or [Training() for _ in experiments]
    heads = [
        StackedHead(experiment, model_of(experiment), training.on_epoch, training.ends.append)
        for experiment, training in zip(experiments, trainings, strict=True)
    ]
    fit_stacked(heads, values, accelerator)
    assert [len(training.ends) for training in trainings] == [1] * len(trainings)
    return list(trainings)


def assert_same(got: Training, expected: Training) -> None:
    assert len(got.history) == len(expected.history)
    for one, other in zip(got.history, expected.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-6)
        assert one.val.to_dict() == pytest.approx(other.val.to_dict(), rel=1e-6)
        names = ("number", "train_top1", "lr", "best", "lr_reduced", "skipped_steps")
        assert [getattr(one, name) for name in names] == [getattr(other, name) for name in names]
        torch.testing.assert_close(one.sample_results, other.sample_results, rtol=1e-6, atol=1e-6)
    for weights, others in zip(got.weights, expected.weights, strict=True):
        assert list(weights) == list(others)
        for name, value in weights.items():
            torch.testing.assert_close(value, others[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        ["--optim.name", "adam"],
        ["--optim.name", "adamw", "--schedule.kind", "cosine"],
        ["--optim.name", "sgd", "--schedule.kind", "onecycle", "--train.class_weights", "true"],
        ["--optim.name", "sgd", "--schedule.kind", "constant", "--train.clip", "0.5"],
        ["--optim.name", "adamw", "--train.clip", "0.5", "--train.sampling", "balanced"],
    ],
    ids=" ".join,
)
def test_heads_get_the_results_that_they_get_alone(
    make: Make, accelerator: Accelerator, changes: list[str]
) -> None:
    compare([make(*BASE, *changes, *head) for head in HEADS], data(), accelerator)


@pytest.mark.slow
def test_frozen_layers_that_drop_values_are_shared(make: Make, accelerator: Accelerator) -> None:
    common = (*BASE, "--model.head", "classifier", "--train.class_weights", "0.5", "--train.epochs", "2")
    compare([make(*common, *head) for head in HEADS[:2]], classifier_data(), accelerator)


def compare(experiments: Sequence[Experiment], values: FitData, accelerator: Accelerator) -> None:
    """Check that experiments can be stacked, and that each ends as it does alone."""
    (key,) = {stack_key(experiment) for experiment in experiments}
    assert key is not None
    expected = alone(experiments, values, accelerator)
    for got, wanted in zip(together(experiments, values, accelerator), expected, strict=True):
        assert_same(got, wanted)
        assert got.ends == [None]


def classifier_data() -> FitData:
    """Features after the first layers of VGG's classifier; two large frozen layers with dropout follow."""
    generator = torch.Generator().manual_seed(4)
    labels = torch.randint(0, 3, (48,), generator=generator)
    values = torch.rand(48, 4096, generator=generator)

    def split(part: slice) -> LabeledFeatures:
        return LabeledFeatures(lambda _: TensorFeatures(values[part]), labels[part].numpy())

    return FitData(split(slice(0, 32)), split(slice(32, 48)), 8)


def test_a_head_that_ends_early_does_not_change_the_others(make: Make, accelerator: Accelerator) -> None:
    common = (*BASE, "--train.epochs", "6", "--schedule.kind", "reduce_on_drop", "--schedule.reductions", "1")
    rates = ("0.01", "1e30", "0.05", "0.002", "0.02")
    experiments = [make(*common, "--optim.lr", rate) for rate in rates]
    values = data()
    with pytest.raises(DivergedError) as diverged:
        alone(experiments[1:2], values, accelerator)
    expected = alone([*experiments[:1], *experiments[2:]], values, accelerator)
    stopped = Training(stop_after=2)
    trainings = [Training(), Training(), Training(), Training(), stopped]
    first, failed, early, other, last = together(experiments, values, accelerator, trainings)
    for got, wanted in zip((first, early, other), expected, strict=False):
        assert_same(got, wanted)
    assert str(failed.ends[0]) == str(diverged.value)
    assert len(last.history) == 2
    assert isinstance(last.ends[0], ValueError)
    lengths = [len(training.history) for training in (first, early, other)]
    assert min(lengths) < max(lengths), "one stops early"
    assert math.isfinite(first.history[-1].train_loss)


def test_all_heads_of_an_epoch_took_the_same_time_whatever_their_callbacks_take(
    make: Make, accelerator: Accelerator
) -> None:
    class Slow(Training):
        def on_epoch(self, result: EpochResult, weights: dict[str, Tensor]) -> None:
            super().on_epoch(result, weights)
            time.sleep(0.02)

    experiments = [make(*BASE, *head) for head in HEADS[:4]]
    trainings = together(experiments, data(), accelerator, [Slow() for _ in experiments])
    for epochs in zip(*(training.history for training in trainings), strict=True):
        assert len({epoch.seconds for epoch in epochs}) == 1


def test_signals_are_deferred_while_epochs_are_recorded_only(make: Make, accelerator: Accelerator) -> None:
    def handler(*_: object) -> None:
        pass

    usual = signal.signal(signal.SIGTERM, handler)
    deferred: dict[str, set[bool]] = {"end": set(), "after epoch": set()}

    def note(when: str) -> None:
        deferred[when].add(signal.getsignal(signal.SIGTERM) is not handler)

    try:
        experiment = make(*BASE)
        head = StackedHead(experiment, model_of(experiment), lambda *_: None, lambda _: note("end"))
        fit_stacked([head], data(), accelerator, lambda: note("after epoch"))
    finally:
        signal.signal(signal.SIGTERM, usual)
    assert deferred == {"end": {True}, "after epoch": {False}}


@pytest.mark.parametrize(
    "changes",
    [
        ["--model.trainable", "all"],
        ["--model.head", "linear"],
        ["--train.accumulate", "2"],
        ["--train.nonfinite", "skip"],
        ["--optim.groups", "{classifier: 0.1}"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_stacked(make: Make, changes: list[str]) -> None:
    assert stack_key(make(*POOLED)) is not None
    assert stack_key(make(*POOLED, *changes)) is None


def test_what_must_be_the_same(make: Make) -> None:
    keys = {
        stack_key(make(*POOLED, *words))
        for words in (
            [],
            ["--train.epochs", "9"],
            ["--train.batch_size", "3"],
            ["--optim.name", "sgd"],
            ["--model.pool", "2"],
            ["--train.clip", "1"],
        )
    }
    assert len(keys) == 6
