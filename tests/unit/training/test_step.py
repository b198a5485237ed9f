"""The optimizer step: its gradient is that of torch, however a batch is divided."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate import Accelerator
from fits import separable_features, train_head
from helpers import Make, small_model
from torch import nn

from runner.training.batches import class_weights

SGD = ("--optim.name", "sgd", "--optim.momentum", "0", "--train.epochs", "1", "--train.batch_size", "64")
"""One step on all images."""


@pytest.mark.parametrize("accumulate", [3, 8])
@pytest.mark.parametrize(
    "options",
    [[], ["--train.class_weights", "true", "--train.label_smoothing", "0.1"]],
    ids=["plain", "weighted"],
)
def test_accumulation_does_not_change_the_result(
    make: Make, accelerator: Accelerator, accumulate: int, options: list[str]
) -> None:
    words = ["--optim.name", "sgd", "--optim.lr", "0.05", "--train.epochs", "2", *options]
    _, whole = train_head(make(*words), small_model(), accelerator)
    model = small_model()
    before = {name: value.clone() for name, value in model.classifier.named_parameters()}
    _, parts = train_head(make(*words, "--train.accumulate", str(accumulate)), model, accelerator)
    for name, value in whole[-1].items():
        assert not torch.allclose(before[name], value, atol=1e-4)
        torch.testing.assert_close(parts[-1][name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_first_step_is_that_of_torch(
    make: Make, accelerator: Accelerator, smoothing: float, weighted: bool
) -> None:
    values, labels = separable_features()
    model = small_model(dropout=0.0)
    target = torch.tensor(labels)
    weights = class_weights(target, 3) if weighted else None
    loss = nn.CrossEntropyLoss(weights, label_smoothing=smoothing)(
        model(values, start=model.split_index), target
    )
    loss.backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.classifier.named_parameters()}
    model.zero_grad()
    experiment = make(
        *SGD,
        *("--optim.lr", "0.1", "--model.dropout", "0"),
        *("--train.label_smoothing", str(smoothing), "--train.class_weights", str(weighted).lower()),
    )
    (epoch,), (after,) = train_head(experiment, model, accelerator)
    assert epoch.train_loss == pytest.approx(loss.item(), rel=1e-6)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-5, atol=1e-7)


def test_the_gradient_is_clipped(make: Make, accelerator: Accelerator) -> None:
    model = small_model()
    before = {name: value.clone() for name, value in model.classifier.named_parameters()}
    experiment = make(*SGD, "--optim.lr", "1", "--train.clip", "0.01")
    _, (after,) = train_head(experiment, model, accelerator)
    moved = math.sqrt(sum((after[name] - value).pow(2).sum().item() for name, value in before.items()))
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_training_accuracy_is_that_of_the_step(make: Make, accelerator: Accelerator) -> None:
    model = small_model(dropout=0.0)
    values, labels = separable_features()
    predicted = model(values, start=model.split_index).argmax(1)
    (epoch,), _ = train_head(make(*SGD, "--model.dropout", "0"), model, accelerator)
    assert epoch.train_top1 == pytest.approx((predicted == torch.tensor(labels)).double().mean().item())
