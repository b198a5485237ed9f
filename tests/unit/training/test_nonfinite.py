"""Losses that are not finite: training stops at their step, or skips it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from fits import MARK, lose_marked, separable_features
from interrupted_fits import EVERY_STEP, NewTraining, Stop
from torch import Tensor

from runner.training.batches import epoch_batches
from runner.training.snapshot import load_newest
from runner.utils.errors import DivergedError


def with_value(values: Tensor, image: int, value: float) -> Tensor:
    """The features with one value of an image replaced."""
    values = values.clone()
    values[image, 0] = value
    return values


@pytest.mark.parametrize("words", [(), ("--train.clip", "1"), ("--train.accumulate", "3")], ids=str)
def test_a_loss_that_is_infinite_while_its_gradient_is_finite_can_be_skipped(
    new_training: NewTraining, words: tuple[str, ...]
) -> None:
    values, labels = separable_features()
    bad = with_value(values, 3, MARK)
    training = new_training("--train.nonfinite", "skip", *words, views=([values, bad], labels))
    training.model.register_forward_hook(lose_marked(labels[3]))
    whole = training.run()
    assert whole.error is None
    assert [epoch.skipped_steps for epoch in whole.history] == [0, 1, 1]
    assert all(math.isfinite(epoch.train_loss) for epoch in whole.history)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_reported_with_its_step(
    new_training: NewTraining, tmp_path: Path, value: float
) -> None:
    values, labels = separable_features()
    image = int(epoch_batches(torch.tensor(labels), 8, "shuffled", 0, 0)[1][0])
    training = new_training(views=([with_value(values, image, value), values], labels))
    error = training.run(tmp_path, settings=EVERY_STEP).error
    assert isinstance(error, DivergedError)
    assert "at step 1 (epoch 1, batch 2 of 3)" in str(error)
    assert "optim.lr" in str(error)
    snapshot, _ = load_newest(tmp_path)
    assert snapshot is not None
    assert (snapshot.step, snapshot.is_finite) == (1, True)


def test_an_epoch_of_which_all_steps_are_skipped_is_an_error(new_training: NewTraining) -> None:
    values, labels = separable_features()
    training = new_training("--train.nonfinite", "skip", views=([torch.full_like(values, math.nan)], labels))
    error = training.run().error
    assert isinstance(error, DivergedError)
    assert "Every step of epoch 1 was skipped" in str(error)


def test_steps_that_are_not_finite_can_be_skipped(new_training: NewTraining, tmp_path: Path) -> None:
    values, labels = separable_features()
    views = [values + 0.1, with_value(values, 3, math.nan)], labels
    training = new_training("--train.nonfinite", "skip", views=views)
    whole = training.run()
    assert whole.error is None
    assert [epoch.skipped_steps for epoch in whole.history] == [0, 1, 1]
    assert [epoch.metrics().get("train/skipped") for epoch in whole.history] == [None, 1, 1]
    assert all(bool(torch.isfinite(value).all()) for value in whole.weights.values())
    assert all(math.isfinite(epoch.train_loss) for epoch in whole.history)
    # The bad image is in a batch of eight; the other twelve were counted.
    correct = whole.history[1].train_top1 * 12
    assert correct == pytest.approx(round(correct), abs=1e-9)
    for number in range(4, 8):
        folder = tmp_path / str(number)
        training.run(folder, Stop("train", number))
        training.run(folder).assert_equal(whole)
