"""The batches of an epoch, and the micro-batches that each process computes of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from runner.config.train_schema import TrainConfig
from runner.utils import hashing
from runner.utils.errors import UserError
from runner.utils.text import counted


@dataclass(frozen=True)
class MicroBatch:
    """The part of a batch that a process computes in one forward and backward pass; it may be empty."""

    batch: np.ndarray
    """Indices of the whole global batch in the training split."""
    samples: slice
    """Which of them are in the micro-batch."""
    last: bool
    """The process's last micro-batch of this batch: the optimizer step follows."""

    @property
    def indices_with_partner(self) -> np.ndarray:
        """The same, after the index of the image before the first one in the batch: before 0 comes the last one."""
        if self.samples.start == self.samples.stop:
            return self.indices
        return np.concatenate([self.batch[[self.samples.start - 1]], self.indices])

    @property
    def partners(self) -> np.ndarray:
        """Indices of the image before each of them in the batch."""
        return self.indices_with_partner[:-1]

    @property
    def indices(self) -> np.ndarray:
        """Indices of its images in the training split."""
        return self.batch[self.samples]


def epoch_batches(
    labels: Tensor, batch_size: int, sampling: str, training_seed: int, epoch: int
) -> list[np.ndarray]:
    """The global batches of an epoch, as indices: a function of (training seed, epoch), not of the processes.

    Args:
        labels: Class indices of the training split.
        batch_size: Images per batch; the last batch may be smaller.
        sampling: "shuffled": every image once; "balanced": drawn with replacement, all classes equally often.
        training_seed: See above.
        epoch: From 0.
    """
    generator = torch.Generator().manual_seed(hashing.derive_seed("order", training_seed, epoch))
    if sampling == "balanced":
        weights = class_weights(labels, int(labels.max()) + 1)[labels]
        order = torch.multinomial(weights.double(), len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator)
    return [batch.numpy() for batch in order.split(batch_size)]


def micro_batches(batch: np.ndarray, accumulate: int, accelerator: Accelerator) -> Iterator[MicroBatch]:
    """This process's `accumulate` parts of a batch: contiguous, and as equal in size as possible."""
    parts = accumulate * accelerator.num_processes
    bounds = [len(batch) * part // parts for part in range(parts + 1)]
    for number in range(accumulate):
        part = number * accelerator.num_processes + accelerator.process_index
        yield MicroBatch(batch, slice(bounds[part], bounds[part + 1]), last=number == accumulate - 1)


def check_batch_statistics(settings: TrainConfig) -> None:
    """Raise `UserError` if batches have a single image at a time, whose statistics would normalize it."""
    if settings.batch_size < 2 * settings.accumulate:
        parts = f" in {settings.accumulate} parts (train.accumulate)" * (settings.accumulate > 1)
        raise UserError(
            "Batch normalization trains, and needs two images or more at a time, but a batch has"
            f" {counted(settings.batch_size, 'image')}{parts}; raise train.batch_size to {2 * settings.accumulate} or"
            " more, or let model.trainable begin behind batch normalization."
        )


def class_weights(labels: Tensor, classes: int, power: float = 1.0) -> Tensor:
    """Inverse class frequencies n / (classes · count), as scikit-learn's "balanced", or a power of them.

    Their mean over images is 1.
    """
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    balanced = len(labels) / (classes * counts)
    if power == 1:
        return balanced
    powers = balanced**power
    return powers / powers[labels].mean()


def loss_weights(labels: Tensor, classes: int, setting: bool | float) -> Tensor:
    """The weight of each class in the loss, for `train.class_weights`."""
    return class_weights(labels, classes, float(setting)) if setting else torch.ones(classes)
