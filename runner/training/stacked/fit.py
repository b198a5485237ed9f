"""Trains many heads in one pass over the features of each epoch. Each gets the results that it gets alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from runner.features.sources import SplitFeatures
from runner.models.dropout import KeyedDropout, set_dropout_batch
from runner.training.batches import epoch_batches, loss_weights
from runner.training.fit_data import FitData
from runner.training.stacked.stack import Batch
from runner.training.stacked.trainer import EpochTimes, StackedHead, StackTrainer
from runner.utils.signals import defer_signals
from runner.utils.tensors import pad_rows

STACK_BYTES = 2**24
"""Size of a stack's parameters, unless a head has more: what a step writes should be cached when it is read again."""
VALIDATED = 512
"""Images that are validated at once."""


def fit_stacked(
    heads: Sequence[StackedHead],
    data: FitData,
    accelerator: Accelerator,
    after_epoch: Callable[[], None] = lambda: None,
) -> None:
    """Train heads whose `compatible.stack_key` is the same.

    Args:
        heads: One or more.
        data: Features and labels.
        accelerator: Device and precision; of one process, on the CPU.
        after_epoch: Called when an epoch of all heads is recorded. Stop signals are not deferred then.

    Exceptions of a head, such as `DivergedError`, are passed to its `on_end`.
    """
    labels = torch.tensor(data.train.labels)
    seeds = dict.fromkeys(head.experiment.seed.train for head in heads)
    groups = [
        _SeedGroup([head for head in heads if head.experiment.seed.train == seed], labels, accelerator)
        for seed in seeds
    ]
    epoch = 0
    while groups:
        _run_epoch(groups, data, epoch)
        groups = [group for group in groups if group.trainers]
        after_epoch()
        epoch += 1


@torch.no_grad()
def _run_epoch(groups: Sequence[_SeedGroup], data: FitData, epoch: int) -> None:
    start = time.monotonic()
    features = data.train.load(epoch)
    loaded = time.monotonic()
    for group in groups:
        group.train(features, epoch)
    trained = time.monotonic()
    features = data.val.load(epoch)
    validated = [(trainer, logits) for group in groups for trainer, logits in group.validate(features, data)]
    count = sum(len(trainer.stack.heads) for trainer, _ in validated)
    times = EpochTimes(start, loaded, trained, time.monotonic(), count, len(data.train.labels))
    with defer_signals():  # what is recorded is recorded as a whole
        for trainer, logits in validated:
            trainer.end_epoch(logits, data.val.labels, times)
    for group in groups:
        group.trainers = [trainer for trainer in group.trainers if trainer.stack.heads]


class _SeedGroup:
    """Heads of one training seed: they see the same batches, and share frozen layers and random numbers.

    Args:
        heads: One or more.
        labels: Class indices of the training split.
        accelerator: Device and precision.
    """

    def __init__(self, heads: Sequence[StackedHead], labels: Tensor, accelerator: Accelerator) -> None:
        self.experiment, self.model = heads[0].experiment, heads[0].model
        self.labels, self.accelerator = labels, accelerator
        train = self.experiment.train
        self.steps_per_epoch = math.ceil(len(labels) / train.batch_size)
        weights = loss_weights(labels, len(self.model.spec.classes), train.class_weights)
        self.trainers = [StackTrainer(part, weights, self.steps_per_epoch) for part in _parts(heads)]
        self._dropouts = [layer for layer in self.model.modules() if isinstance(layer, KeyedDropout)]
        self._hidden = self._dropouts[-1]
        self._input = self._dropouts[-2] if self.model.spec.head == "pooled" else None

    def train(self, features: SplitFeatures, epoch: int) -> None:
        """Take the steps of an epoch."""
        train, seed = self.experiment.train, self.experiment.seed.train
        batches = epoch_batches(self.labels, train.batch_size, train.sampling, seed, epoch)
        for trainer in self.trainers:
            trainer.start_epoch()
        self.model.train()
        for number, values in enumerate(features.batches(batches)):
            step, size = epoch * self.steps_per_epoch + number, len(values)
            set_dropout_batch(self._dropouts, step, slice(0, size), size)
            values, target = self._head_input(values), self.labels[batches[number]]
            of_input = self._noise(self._input, step, values.shape)
            of_hidden = {
                width: self._noise(self._hidden, step, torch.Size((size, width)))
                for width in {trainer.width for trainer in self.trainers}
            }
            for trainer in self.trainers:
                trainer.step(Batch(values, of_input, of_hidden[trainer.width], target))

    def validate(self, features: SplitFeatures, data: FitData) -> Iterator[tuple[StackTrainer, Tensor]]:
        """The logits of each stack for the validation images: heads × n × classes."""
        count, size = len(data.val.labels), data.batch_size
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        logits: list[list[Tensor]] = [[] for _ in self.trainers]
        inputs: list[Tensor] = []
        self.model.eval()
        for indices, values in zip(batches, features.batches(batches), strict=True):
            inputs.append(self._head_input(pad_rows(values, size))[: len(values)])
            if len(inputs) * size >= VALIDATED or indices is batches[-1]:
                rows = torch.cat(inputs)
                for trainer, own in zip(self.trainers, logits, strict=True):
                    own.append(trainer.stack.logits(rows))
                inputs = []
        for trainer, own in zip(self.trainers, logits, strict=True):
            yield trainer, torch.cat(own, 1)

    def _head_input(self, values: Tensor) -> Tensor:
        """What the head computes on, n × features: after frozen layers that drop values at random."""
        with self.accelerator.autocast():
            return self.model.run(values, self.model.split_index, self.model.head_index).float()

    def _noise(self, layer: KeyedDropout | None, step: int, shape: torch.Size) -> Tensor | None:
        if layer is None or not any(trainer.drops for trainer in self.trainers):
            return None
        return layer.draw_uniform(step, shape[0], shape[1:])


def _parts(heads: Sequence[StackedHead]) -> Iterator[list[StackedHead]]:
    """The heads of each stack: of one width, and not too large."""
    for width in dict.fromkeys(head.experiment.model.width for head in heads):
        of_width = [head for head in heads if head.experiment.model.width == width]
        size = sum(value.nbytes for value in of_width[0].model.trainable_state().values())
        count = max(1, STACK_BYTES // size)
        for start in range(0, len(of_width), count):
            yield of_width[start : start + count]
