"""Trainings on features in memory, which take milliseconds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import runner.training.loop
from runner.config.schema import Experiment
from runner.evaluation.metrics import Scores
from runner.models.transfer_model import TransferModel
from runner.training.callbacks.base import Callback
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.fit_state import FitState
from runner.training.loop import fit
from runner.training.results import EpochResult


@dataclass
class TensorFeatures:
    """The features of a split from a tensor: one row per image."""

    values: Tensor

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        return (self.values[torch.as_tensor(list(batch), dtype=torch.long)] for batch in batches)


def separable_features(count: int = 20) -> tuple[Tensor, list[int]]:
    """512 values per image and its class, which a linear model can predict; class 0 has half of the images."""
    generator = torch.Generator().manual_seed(1)
    labels = [0 if index % 2 else 1 + index // 2 % 2 for index in range(count)]
    centers = torch.randn(3, 512, generator=generator)
    return centers[labels] + torch.randn(count, 512, generator=generator), labels


MARK = 12345.0
"""First value of the features of an image that `lose_marked` is to find."""


def lose_marked(label: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A forward hook: the logit of a class is -inf for marked images. Their loss is infinite, its gradient finite."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
        hidden = torch.zeros_like(logits, dtype=torch.bool)
        hidden[inputs[0].flatten(1)[:, 0] == MARK, label] = True
        return logits.masked_fill(hidden, -math.inf)

    return hook


class _Weights(Callback):
    """Remembers the head's parameters after each epoch."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        parameters = state.model.classifier.named_parameters()
        self.after.append({name: value.detach().clone() for name, value in parameters})


def train_head(
    experiment: Experiment, model: TransferModel, accelerator: Accelerator
) -> tuple[list[EpochResult], list[dict[str, Tensor]]]:
    """Train a head on separable features, which are its validation too: the epochs, and the parameters after each."""
    values, labels = separable_features()
    split = LabeledFeatures(lambda epoch: TensorFeatures(values), labels)
    weights = _Weights()
    history = fit(experiment, model, FitData(split, split, 8), accelerator, [weights])
    return history, weights.after


def script_validation(
    monkeypatch: pytest.MonkeyPatch,
    top1: Sequence[float],
    balanced_accuracy: Sequence[float] = (),
    losses: Sequence[float] = (),
) -> None:
    """Let validation return these scores, one per epoch. There are no scores for further epochs."""
    scripted = iter(zip(top1, balanced_accuracy or top1, losses or [1.0] * len(top1), strict=True))

    def next_scores(*_: object) -> Scores:
        first, balanced, loss = next(scripted)
        values = {"top1": first, "top5": 1.0, "balanced_accuracy": balanced, "loss": loss}
        return Scores(values, images=100, hits1=round(first * 100), hits5=100)

    monkeypatch.setattr(runner.training.loop, "compute_scores", next_scores)
