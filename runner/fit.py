"""The training loop: the tail of a network on rows, wherever they come from.

The global batch, its order, its dropout masks and its gradient are the same on any number of processes: each
takes its share of every batch, and gradients are sums over the batch divided by its count.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from runner import keys, schedule, scores
from runner.dropout import announce
from runner.errors import UserError
from runner.experiment import Experiment, Optim
from runner.features import Rows, filled
from runner.network import Network
from runner.scores import Scores
from runner.terminal import Terminal


@dataclass(frozen=True)
class Epoch:
    """What came of an epoch. `number` counts from 1; `seconds` holds training and validation."""

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
    labels = torch.tensor(train.labels)
    classes = len(network.architecture.classes)
    weights = class_weights(labels, classes) if settings.class_weights else torch.ones(classes)
    optimizer = build_optimizer(experiment.optim, network)
    batches_an_epoch = math.ceil(len(labels) / settings.batch_size)
    rule = schedule.build(experiment.schedule, optimizer, settings.epochs * batches_an_epoch)
    model, prepared = accelerator.prepare(network, optimizer)
    history: list[Epoch] = []
    best = -math.inf
    with terminal.progress("train", settings.epochs * len(labels)) as advance:
        for epoch in range(settings.epochs):
            began = time.monotonic()
            rows = train.rows(epoch)
            lr = optimizer.param_groups[0]["lr"]
            network.train()
            trained_at = time.monotonic()
            batches = list(epoch_batches(labels, settings.batch_size, settings.sampling, experiment.seed.fit, epoch))
            parts = [part for batch in batches for part in shares(len(batch), settings.accumulate, accelerator)]
            incoming = rows.batches([batches[part.batch_of(number, settings.accumulate)][part.rows]
                                     for number, part in enumerate(parts)])
            sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
            for number, part in enumerate(parts):
                place = part.batch_of(number, settings.accumulate)
                batch = batches[place]
                target = labels[batch[part.rows]].to(accelerator.device)
                announce(network.modules(), epoch * len(batches) + place, part.rows, len(batch))
                with nullcontext() if part.last else accelerator.no_sync(model):
                    logits = model(next(incoming), start=network.cut)
                    loss = F.cross_entropy(
                        logits,
                        target,
                        weights.to(logits.device),
                        reduction="sum",
                        label_smoothing=settings.label_smoothing,
                    ) / weights[labels[batch]].sum().item()
                    # The wrapper averages gradients over processes; what is wanted is their sum.
                    accelerator.backward(loss * accelerator.num_processes)
                sums[0] += loss.detach() * len(batch)
                sums[1] += (logits.detach().argmax(1) == target).sum()
                if part.last:
                    if settings.clip:
                        accelerator.clip_grad_norm_(network.parameters(), settings.clip)
                    prepared.step()
                    prepared.zero_grad()
                    rule.stepped()
                    advance(len(batch))
            train_loss, train_top1 = (accelerator.reduce(sums, "sum") / sum(map(len, batches))).tolist()
            train_seconds = time.monotonic() - trained_at
            if not math.isfinite(train_loss):
                raise UserError(
                    f"The training loss is {train_loss} in epoch {epoch + 1}: training diverged;"
                    f" lower optim.lr ({experiment.optim.lr:g}) or set fit.clip."
                )
            judged = evaluate(network, val.rows(epoch), val.labels, accelerator, chunk)
            score = judged.top1 if settings.best == "top1" else judged.recall
            stop = broadcast_object_list([rule.validated(judged.hits1)])[0]
            record = Epoch(
                number=epoch + 1,
                train_loss=train_loss,
                train_top1=train_top1,
                val=judged,
                lr=lr,
                seconds=time.monotonic() - began,
                images_per_second=sum(map(len, batches)) / train_seconds,
                best=score > best,
                reduced=isinstance(rule, schedule.ReportRule) and epoch in rule.reduced_at,
            )
            best = max(best, score)
            history.append(record)
            on_epoch(record)
            if stop:
                break
    return history


def evaluate(
    network: Network, rows: Rows, labels: Sequence[int], accelerator: Accelerator, chunk: int
) -> Scores:
    """Scores of a network on rows: the same counts on any number of processes.

    Args:
        network: Unwrapped; left in evaluation mode.
        rows: Of the split, in its order.
        labels: The class index of each.
        accelerator: Its processes share the chunks.
        chunk: Rows judged at once; the last ones are filled up, so that none depends on its batch.
    """
    chunks = [range(start, min(start + chunk, len(labels))) for start in range(0, len(labels), chunk)]
    own = chunks[accelerator.process_index :: accelerator.num_processes]
    truth = torch.tensor(labels)
    judged = [torch.zeros(0, 3, dtype=torch.float64, device=accelerator.device)]
    network.eval()
    for places, batch in zip(own, rows.batches(own), strict=True):
        judged.append(scores.judge(infer(network, batch, accelerator, chunk), truth[list(places)].to(batch.device)))
    places_of_all = [place for chunk_places in own for place in chunk_places]
    everywhere = scores.gather(places_of_all, torch.cat(judged), len(labels), accelerator)
    return scores.count(everywhere, labels, len(network.architecture.classes))


def infer(network: Network, rows: Tensor, accelerator: Accelerator, chunk: int) -> Tensor:
    """Logits (n × classes) of at most `chunk` rows of the prefix, which no other row influences."""
    with torch.no_grad(), accelerator.autocast():
        return network.run(filled(rows, chunk), network.cut, len(list(network.layers())))[: len(rows)]


def build_optimizer(optim: Optim, network: Network) -> torch.optim.Optimizer:
    """The optimiser over what trains."""
    groups = network.parameter_groups(optim.lr, optim.groups)
    if optim.name == "sgd":
        return torch.optim.SGD(groups, optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    kind = torch.optim.AdamW if optim.name == "adamw" else torch.optim.Adam
    return kind(groups, optim.lr, weight_decay=optim.weight_decay)


def class_weights(labels: Tensor, classes: int) -> Tensor:
    """Inverse class frequencies, of mean 1 over the images: n / (classes · count), as scikit-learn's "balanced"."""
    counts = torch.bincount(labels, minlength=classes).clamp(min=1)
    return len(labels) / (classes * counts)


def epoch_batches(
    labels: Tensor, batch_size: int, sampling: str, fit_seed: int, epoch: int
) -> Iterable[np.ndarray]:
    """The batches of an epoch, as places in the split: a function of (fit seed, epoch) alone."""
    generator = torch.Generator().manual_seed(keys.seed("order", fit_seed, epoch))
    if sampling == "balanced":
        weights = class_weights(labels, int(labels.max()) + 1)[labels]
        order = torch.multinomial(weights.double(), len(labels), replacement=True, generator=generator)
    else:
        order = torch.randperm(len(labels), generator=generator)
    return (each.numpy() for each in order.split(batch_size))


@dataclass(frozen=True)
class Part:
    """What one process computes at once of a batch: `rows` of it; `last` before the optimiser steps."""

    rows: slice
    last: bool

    @staticmethod
    def batch_of(number: int, accumulate: int) -> int:
        """The batch that the `number`-th part of an epoch belongs to."""
        return number // accumulate


def shares(count: int, accumulate: int, accelerator: Accelerator) -> Iterator[Part]:
    """This process's parts of a batch of `count` images: contiguous, as even as can be, possibly empty."""
    pieces = accumulate * accelerator.num_processes
    bounds = [count * piece // pieces for piece in range(pieces + 1)]
    for number in range(accumulate):
        piece = number * accelerator.num_processes + accelerator.process_index
        yield Part(slice(bounds[piece], bounds[piece + 1]), number == accumulate - 1)
