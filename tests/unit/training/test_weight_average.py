"""Averages of the weights: equal to torch's and timm's, validated beside the weights, kept where they are better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from fits import TensorFeatures, script_validation, separable_features
from helpers import Make, small_model
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from runner.config.train_schema import TrainConfig
from runner.models.transfer_model import TransferModel
from runner.training.callbacks.base import Callback
from runner.training.callbacks.checkpoint import CheckpointCallback
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.fit_state import FitState
from runner.training.loop import fit
from runner.training.results import EpochResult
from runner.training.step import TrainStep
from runner.training.weight_average import WeightAverage

EPOCHS = 5
WORDS = (
    "--train.epochs",
    str(EPOCHS),
    "--train.batch_size",
    "8",
    "--schedule.kind",
    "constant",
    "--optim.lr",
    "0.01",
)


class Spy(Callback):
    """What the model and the average are after each epoch."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.averages: list[dict[str, Tensor]] = []

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        self.weights.append(clones(state.model.trainable_state()))
        assert state.train_step.average is not None
        self.averages.append(clones(state.train_step.average.tensors))


def clones(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def train(
    experiment: Any, model: TransferModel, accelerator: Accelerator, *callbacks: Callback
) -> list[EpochResult]:
    values, labels = separable_features()
    split = LabeledFeatures(lambda epoch: TensorFeatures(values), labels)
    return fit(experiment, model, FitData(split, split, 8), accelerator, callbacks)


def assert_close(own: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, value in own.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "follower",
    [
        lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7)),
        lambda model: ModelEmaV3(model, decay=0.7),
    ],
    ids=["torch", "timm"],
)
def test_the_moving_average_is_that_of_torch_and_timm(
    follower: Callable[[TransferModel], Any],
    make: Make,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, update = small_model(), TrainStep.update
    other = follower(model)
    if isinstance(other, AveragedModel):
        other.update_parameters(model)  # torch's begins with the first weights that it is shown

    def with_follower(self: TrainStep) -> None:
        update(self)
        other.update(model) if isinstance(other, ModelEmaV3) else other.update_parameters(model)

    monkeypatch.setattr(TrainStep, "update", with_follower)
    spy = Spy()
    train(make(*WORDS, "--train.average", "ema", "--train.ema_decay", "0.7"), model, accelerator, spy)
    assert_close(spy.averages[-1], dict(other.module.state_dict()))


def test_the_mean_over_epochs_is_that_of_torch(make: Make, accelerator: Accelerator) -> None:
    spy, model = Spy(), small_model()
    other = AveragedModel(model)
    train(make(*WORDS, "--train.average", "swa", "--train.swa_start", "0.4"), model, accelerator, spy)
    for weights in spy.weights[2:]:  # from the third of five epochs on
        model.load_state_dict(weights, strict=False)
        other.update_parameters(model)
    assert_close(spy.averages[-1], dict(other.module.state_dict()))


def test_a_mean_takes_account_of_an_epoch_once() -> None:
    """Also if it is validated again, after an interruption."""
    model = small_model()
    average = WeightAverage(model, TrainConfig(average="swa", swa_start=0.0, epochs=4))
    for epoch, value in enumerate((1.0, 3.0)):
        for parameter in model.parameters():
            parameter.data.fill_(value)
        average.after_epoch(epoch)
        average.after_epoch(epoch)
    assert all(torch.allclose(each, torch.tensor(2.0)) for each in average.tensors.values())


def test_statistics_of_batches_are_averaged_too() -> None:
    model = small_model(arch="vgg11_bn", trainable="last:1")
    average = WeightAverage(model, TrainConfig(average="ema", ema_decay=0.5))
    (name, *_) = [name for name in average.tensors if name.endswith("running_mean")]
    count = name.replace("running_mean", "num_batches_tracked")
    before = average.tensors[name].clone()
    state = model.trainable_state()
    state[name].add_(1.0)
    state[count].fill_(7)
    average.after_step()
    torch.testing.assert_close(average.tensors[name], before + 0.5)
    assert average.tensors[count] == 7


@pytest.mark.parametrize(
    ("top1", "averaged", "best"),
    [([0.5, 0.4, 0.4, 0.6], [False, True], 2), ([0.3, 0.5, 0.4, 0.4], [True, False], 1)],
    ids=["the average wins later", "the weights win later"],
)
def test_each_epoch_has_the_scores_and_the_checkpoint_of_the_better(
    top1: list[float],
    averaged: list[bool],
    best: int,
    make: Make,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights and average of each epoch are validated in turn."""
    script_validation(monkeypatch, top1)

    class Setup:
        model = small_model()

    monkeypatch.setattr(CheckpointCallback, "_save", lambda *_: None)
    spy, checkpoints = Spy(), CheckpointCallback(Setup, None, "")  # type: ignore[arg-type]
    words = (*WORDS, "--train.epochs", "2", "--train.average", "ema", "--train.ema_decay", "0.5")
    history = train(make(*words), Setup.model, accelerator, spy, checkpoints)
    assert [epoch.averaged for epoch in history] == averaged
    for epoch, (weights, average) in zip(history, zip(top1[::2], top1[1::2], strict=True), strict=True):
        assert epoch.val["top1"] == max(weights, average)
        assert epoch.others is not None
        assert epoch.others["top1"] == min(weights, average)
        logged = "val/weights/top1" if epoch.averaged else "val/average/top1"
        assert epoch.metrics()[logged] == min(weights, average)
    assert next(epoch.number for epoch in reversed(history) if epoch.best) == best
    kept = (spy.averages if averaged[best - 1] else spy.weights)[best - 1]
    assert_close(kept, checkpoints.best_weights)
    last = (spy.averages if averaged[-1] else spy.weights)[-1]
    assert_close(last, Setup.model.trainable_state())


def test_a_result_with_an_average_survives_being_stored(make: Make, accelerator: Accelerator) -> None:
    history = train(make(*WORDS, "--train.average", "ema"), small_model(), accelerator)
    for epoch in history:
        assert EpochResult.from_dict(epoch.to_dict()).to_dict() == epoch.to_dict()
