"""The training loop: the tail of a network on rows, wherever they come from.

The global batch, its order, its dropout masks and its gradient are the same on any number of processes: each
takes its share of every batch, and gradients are sums over the batch divided by its count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from runner import keys, schedule
from runner.dropout import announce
from runner.errors import UserError
from runner.experiment import Experiment, Optim
from runner.experiment import Fit as FitSettings
from runner.features import Rows
from runner.judging import judgements
from runner.network import Network
from runner.scores import Scores, count
from runner.terminal import Terminal


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch. `number` counts from 1; `seconds` holds features, training and validation."""

    number: int
    train_loss: float
    train_top1: float
    val: Scores
    lr: float
    seconds: float
    images_per_second: float
    best: bool
    reduced: bool
    """The learning rate was divided at its end."""
    judged: Tensor = field(default_factory=lambda: torch.empty(0, 3), repr=False, compare=False)
    """Of each validation image: n × 3, as `scores.judge` gives it."""

    def metrics(self) -> dict[str, float]:
        """Under the names that the records use."""
        return {
            "train/loss": self.train_loss,
            "train/top1": self.train_top1,
            **self.val.metrics("val"),
            "lr": self.lr,
            "images_per_second": self.images_per_second,
            "epoch_seconds": self.seconds,
        }


@dataclass(frozen=True)
class Part:
    """What one process computes at once of a batch: `rows` of it; `last` before the optimiser steps."""

    rows: slice
    last: bool


@dataclass(frozen=True)
class Inputs:
    """Rows and class indices of a split; `rows` is told the epoch, from 0."""

    rows: Callable[[int], Rows]
    labels: Sequence[int]


def fit(
    experiment: Experiment,
    network: Network,
    train: Inputs,
    val: Inputs,
    accelerator: Accelerator,
    chunk: int,
    on_epoch: Callable[[Epoch], None],
    terminal: Terminal,
) -> list[Epoch]:
    """Train a network's tail; `on_epoch` hears of each epoch while the network is as it was then.

    Args:
        experiment: Its `fit`, `optim`, `schedule` and `seed` decide.
        network: Unwrapped, on the accelerator's device, its frozen weights final.
        train: What to learn from.
        val: What to judge each epoch by.
        accelerator: Device, precision and peers.
        chunk: Rows that are judged at once.
        on_epoch: Called on every process.
        terminal: Shows progress.

    Raises `UserError` when the loss is no longer a number.
    """
    settings = experiment.fit
    trainer = _Trainer(experiment, network, torch.tensor(train.labels), accelerator)
    history: list[Epoch] = []
    try:
        with terminal.progress("train", settings.epochs * len(train.labels)) as advance:
            for number in range(settings.epochs):
                began = time.monotonic()
                rows = train.rows(number)
                lr = trainer.lr
                ready = time.monotonic()
                loss, top1 = trainer.epoch(number, rows, advance)
                trained = time.monotonic()
                _check_finite("training", loss, number, experiment)
                judged = judgements(network, val.rows(number), val.labels, accelerator, chunk)
                val_scores = count(judged, val.labels, len(network.architecture.classes))
                _check_finite("validation", val_scores.loss, number, experiment)
                stop, reduced = trainer.validated(val_scores)
                record = Epoch(
                    number=number + 1,
                    train_loss=loss,
                    train_top1=top1,
                    val=val_scores,
                    lr=lr,
                    seconds=time.monotonic() - began,
                    images_per_second=len(train.labels) / (trained - ready),
                    best=all(_score(val_scores, settings) > _score(epoch.val, settings) for epoch in history),
                    reduced=reduced,
                    judged=judged,
                )
                history.append(record)
                on_epoch(record)
                if stop:
                    break
    finally:  # a process may fit again, whatever became of this one
        accelerator.free_memory()
    return history


def _check_finite(which: str, loss: float, number: int, experiment: Experiment) -> None:
    if not math.isfinite(loss):
        raise UserError(
            f"The {which} loss is {loss} in epoch {number + 1}: training diverged;"
            f" lower optim.lr ({experiment.optim.lr:g}) or set fit.clip."
        )


def _score(scores: Scores, settings: FitSettings) -> float:
    return scores.top1 if settings.best == "top1" else scores.recall


class _Trainer:
    """The optimiser and what it needs, over the epochs of one fit."""

    def __init__(
        self, experiment: Experiment, network: Network, labels: Tensor, accelerator: Accelerator
    ) -> None:
        self.settings = experiment.fit
        self.seed = experiment.seed.fit
        self.network = network
        self.labels = labels
        self.accelerator = accelerator
        classes = len(network.architecture.classes)
        self.weights = class_weights(labels, classes) if self.settings.class_weights else torch.ones(classes)
        self.optimizer = build_optimizer(experiment.optim, network)
        self.batches = math.ceil(len(labels) / self.settings.batch_size)
        self.rule = schedule.build(experiment.schedule, self.optimizer, self.settings.epochs * self.batches)
        self.model, self.prepared = accelerator.prepare(network, self.optimizer)

    @property
    def lr(self) -> float:
        """The learning rate in force, of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    def epoch(self, number: int, rows: Rows, advance: Callable[[int], None]) -> tuple[float, float]:
        """Train on every batch of an epoch (from 0): mean loss and top-1, as trained, over all processes."""
        settings, accelerator = self.settings, self.accelerator
        batches = list(epoch_batches(self.labels, settings.batch_size, settings.sampling, self.seed, number))
        parts = [
            (place, part)
            for place, batch in enumerate(batches)
            for part in shares(len(batch), settings.accumulate, accelerator)
        ]
        incoming = rows.batches([batches[place][part.rows].tolist() for place, part in parts])
        sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        self.network.train()
        for (place, part), values in zip(parts, incoming, strict=True):
            announce(self.network.modules(), number * len(batches) + place, part.rows, len(batches[place]))
            sums += self._part(values, batches[place], part)
            if part.last:
                self._step()
                advance(len(batches[place]))
        loss, hits = accelerator.reduce(sums, "sum").tolist()
        return loss / len(self.labels), hits / len(self.labels)

    def validated(self, val: Scores) -> tuple[bool, bool]:
        """Tell the schedule: whether to stop, and whether the learning rate was divided; rank 0's word counts."""
        before = self.lr
        stop = self.rule.validated(val.hits1)
        return broadcast_object_list([(stop, self.lr < before)])[0]

    def _part(self, values: Tensor, batch: np.ndarray, part: Part) -> Tensor:
        """Forward and backward of this process's part of a batch: its share of summed loss, and its hits."""
        target = self.labels[batch[part.rows]].to(values.device)
        with nullcontext() if part.last else self.accelerator.no_sync(self.model):
            logits = self.model(values, start=self.network.cut)
            summed = F.cross_entropy(
                logits,
                target,
                self.weights.to(logits.device),
                reduction="sum",
                label_smoothing=self.settings.label_smoothing,
            )
            loss = summed / self.weights[self.labels[batch]].sum().item()
            # The wrapper averages gradients over processes; what is wanted is their sum.
            self.accelerator.backward(loss * self.accelerator.num_processes)
        hits = (logits.detach().argmax(1) == target).sum()
        return torch.stack([loss.detach() * len(batch), hits])

    def _step(self) -> None:
        if self.settings.clip:
            self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        self.prepared.step()
        self.prepared.zero_grad()
        self.rule.stepped()


def build_optimizer(optim: Optim, network: Network) -> torch.optim.Optimizer:
    """The optimiser over what trains; fused: one pass over each tensor, a fifth of a pooled head's epoch."""
    groups = network.parameter_groups(optim.lr, optim.groups)
    if optim.name == "sgd":
        return torch.optim.SGD(
            groups, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=True
        )
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, optim.lr, weight_decay=optim.weight_decay, fused=True)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Inverse class frequencies, of mean 1 over the images: n / (classes · count), as scikit-learn's "balanced"."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts)


def epoch_batches(
    labels: Tensor, batch_size: int, sampling: str, fit_seed: int, epoch: int
) -> Iterator[np.ndarray]:
    """The batches of an epoch, as places in the split: a function of (fit seed, epoch) alone."""
    generator = torch.Generator().manual_seed(keys.seed("order", fit_seed, epoch))
    if sampling == "balanced":
        weights = class_weights(labels, int(labels.max()) + 1)[labels]
        order = torch.multinomial(weights.double(), len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator)
    return (each.numpy() for each in order.split(batch_size))


def shares(count: int, accumulate: int, accelerator: Accelerator) -> Iterator[Part]:
    """This process's parts of a batch of `count` images: contiguous, as even as can be, possibly empty."""
    pieces = accumulate * accelerator.num_processes
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    for number in range(accumulate):
        piece = number * accelerator.num_processes + accelerator.process_index
        yield Part(slice(bounds[piece], bounds[piece + 1]), number == accumulate - 1)
