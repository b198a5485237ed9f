"""Averages of the weights over a training, which often predict better than the last ones.

ema: an exponential moving average over the steps, as timm's `ModelEmaV3` and torch's `get_ema_multi_avg_fn` compute it.
swa: the mean over the ends of epochs (stochastic weight averaging, Izmailov et al., 2018).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from runner.config.train_schema import TrainConfig
from runner.models.transfer_model import TransferModel


class WeightAverage:
    """An average of the tensors that train, also of batch statistics. It is the same on every process.

    Args:
        model: With the initial weights.
        settings: Kind, decay and start.
    """

    def __init__(self, model: TransferModel, settings: TrainConfig) -> None:
        self.model = model
        self.decay = settings.ema_decay if settings.average == "ema" else None
        self.first_epoch = 0 if self.decay is not None else math.ceil(settings.swa_start * settings.epochs)
        """The first epoch, from 0, at whose end there is an average."""
        self.tensors = {name: value.detach().clone() for name, value in model.trainable_state().items()}
        self.epochs = 0
        """Epochs, from the first one of the training, whose ends the mean takes account of or has left out."""

    @classmethod
    def of(cls, model: TransferModel, settings: TrainConfig) -> WeightAverage | None:
        """The average that the settings ask for; None if they ask for none."""
        return cls(model, settings) if settings.average != "none" else None

    @torch.no_grad()
    def after_step(self) -> None:
        """Take account of a step."""
        if self.decay is not None:
            self._approach(1 - self.decay)

    @torch.no_grad()
    def after_epoch(self, epoch: int) -> None:
        """Take account of the end of an epoch, from 0. A second call for the same epoch does nothing."""
        if self.decay is None and self.epochs <= epoch:
            self.epochs = epoch + 1
            if epoch >= self.first_epoch:
                self._approach(1 / (epoch - self.first_epoch + 1))

    def exists(self, epoch: int) -> bool:
        """Whether there is an average at the end of an epoch, from 0."""
        return epoch >= self.first_epoch

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block the model has the average."""
        own = {name: value.detach().clone() for name, value in self.model.trainable_state().items()}
        self.apply()
        try:
            yield
        finally:
            self.model.load_state_dict(own, strict=False)

    def apply(self) -> None:
        """Give the model the average."""
        self.model.load_state_dict(self.tensors, strict=False)

    def load(self, tensors: dict[str, Tensor], epochs: int) -> None:
        """Continue with an average that was saved."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])
        self.epochs = epochs

    def _approach(self, weight: float) -> None:
        current = self.model.trainable_state()
        pairs = [(value, current[name].detach()) for name, value in self.tensors.items()]
        floats = [(own, new) for own, new in pairs if own.is_floating_point()]
        if floats:
            own, new = zip(*floats, strict=True)
            torch._foreach_lerp_(list(own), list(new), weight)
        for own_count, new_count in pairs:
            if not own_count.is_floating_point():  # of batches that batch normalization has seen
                own_count.copy_(new_count)
