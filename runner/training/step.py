"""One fit's optimiser steps: batches, gradients, and standing still between two steps to be kept and taken up again.

The global batch, its order, its dropout masks and its gradient are the same on any number of processes: each
takes its share of every batch, and gradients are sums over the batch divided by its count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from runner.config.schema import Experiment, OptimConfig
from runner.evaluation.metrics import Scores
from runner.features.cache import SplitFeatures
from runner.models.dropout import set_dropout_batch
from runner.models.transfer_model import TransferModel
from runner.training import lr_schedule
from runner.training.snapshot import Snapshot
from runner.utils import hashing
from runner.utils.errors import DivergedError, UserError

NEVER = 2**62
"""The step of a first failure that has not come."""


@dataclass(frozen=True)
class Part:
    """What one process computes at once of a batch: `rows` of it; `last` before the optimiser steps."""

    rows: slice
    last: bool


class Trainer:
    """The optimiser and what it needs, over the epochs of one fit.

    Args:
        experiment: Its `fit`, `optim`, `schedule` and `seed` decide.
        network: Unwrapped, on the accelerator's device, its frozen weights final.
        labels: Class indices of the training split.
        accelerator: Device, precision and peers.
    """

    def __init__(
        self, experiment: Experiment, network: TransferModel, labels: Tensor, accelerator: Accelerator
    ) -> None:
        self.experiment = experiment
        self.settings = experiment.train
        self.network = network
        self.labels = labels
        self.accelerator = accelerator
        classes = len(network.spec.classes)
        self.weights = class_weights(labels, classes) if self.settings.class_weights else torch.ones(classes)
        self.optimizer = build_optimizer(experiment.optim, network)
        self.batches = math.ceil(len(labels) / self.settings.batch_size)
        self.rule = lr_schedule.build(
            experiment.schedule, self.optimizer, self.settings.epochs * self.batches
        )
        self._scaler_at_first = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        self.model, self.prepared = accelerator.prepare(network, self.optimizer)
        self.number = 0
        """The epoch, from 0."""
        self.done = 0
        """Batches of it that are done."""
        self.epoch_lr = self.lr
        """The learning rate that it began with."""
        self.skipped = 0
        """Steps that were left out since the fit began."""
        self.shares: list[list[float]] | None = [[0.0, 0.0, 0.0]] * accelerator.num_processes
        """Each process's sums, where all of them are known here."""
        self._sums, self._counted = self._zeros(), 0.0
        self._failed = torch.full((), NEVER, dtype=torch.int64, device=accelerator.device)
        self._whole = True

    @property
    def lr(self) -> float:
        """The learning rate in force, of the first group."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def step(self) -> int:
        """Optimiser steps since the fit began."""
        return self.number * self.batches + self.done

    def epoch(self, rows: SplitFeatures, between: Callable[[int], None]) -> tuple[float, float]:
        """Train on the batches of the epoch that are left: its mean loss and top-1, as trained, over all processes.

        `between` hears after each step how many images it took; what it raises leaves the trainer as it is.
        """
        settings, accelerator = self.settings, self.accelerator
        seed = self.experiment.seed.train
        batches = list(epoch_batches(self.labels, settings.batch_size, settings.sampling, seed, self.number))
        parts = [
            (place, part)
            for place, batch in enumerate(batches)
            if place >= self.done
            for part in shares(len(batch), settings.accumulate, accelerator)
        ]
        self.network.train()
        if parts:
            incoming = rows.batches([batches[place][part.rows].tolist() for place, part in parts])
            for (place, part), values in zip(parts, incoming, strict=True):
                self._whole = False
                set_dropout_batch(
                    self.network.modules(), self.number * self.batches + place, part.rows, len(batches[place])
                )
                self._part(values, batches[place], part)
                if part.last:
                    self._step()
                    self.done += 1
                    self.shares = None
                    self._whole = True
                    between(len(batches[place]))
        self.check()
        own = torch.tensor(self._share(), dtype=torch.float64, device=accelerator.device)
        loss, hits, counted = accelerator.reduce(own, "sum").tolist()
        if not counted:
            raise DivergedError(
                f"Every step of epoch {self.number + 1} was left out (train.nonfinite=skip): training diverged; lower"
                f" optim.lr ({self.experiment.optim.lr:g}) or set train.clip."
            )
        self.shares = [[loss, hits, counted], *[[0.0, 0.0, 0.0]] * (accelerator.num_processes - 1)]
        return loss / max(counted, 1), hits / len(self.labels)

    def ended(self, val: Scores) -> tuple[bool, bool]:
        """End the epoch with its validation: whether to stop, and whether the learning rate was divided.

        Rank 0's word counts. The next epoch begins.
        """
        before = self.lr
        stop = self.rule.validated(val.hits1)
        self.number, self.done, self.epoch_lr = self.number + 1, 0, self.lr
        self._sums, self._counted = self._zeros(), 0.0
        self.shares = [[0.0, 0.0, 0.0]] * self.accelerator.num_processes
        return broadcast_object_list([(stop, self.lr < before)])[0]

    def check(self) -> None:
        """See that no loss was anything but a number; all processes ask together.

        Raises `Diverged` with the step where one was not.
        """
        failed = int(self.accelerator.gather(self._failed[None]).min())
        if failed == NEVER:
            return
        self._whole = False
        optim = self.experiment.optim
        raise DivergedError(
            f"The training loss is not a number at step {failed} (epoch {failed // self.batches + 1}, batch"
            f" {failed % self.batches + 1} of {self.batches}): training diverged; lower optim.lr ({optim.lr:g}), set"
            " train.clip, or leave such steps out with train.nonfinite=skip."
        )

    def meet(self) -> None:
        """Let every process know the sums of all, so that `capture` can hold them; all processes ask together."""
        self.shares = gather_object([self._share()])

    def capture(self) -> Snapshot | None:
        """The fit as it stands; None in mid-step, or where other processes' sums are not known here."""
        if self.accelerator.num_processes == 1:
            self.shares = [self._share()]
        if not self._whole or self.shares is None:
            return None
        tensors = {f"learned/{name}": value for name, value in self.network.trainable_state().items()}
        state, plain = self.optimizer.state_dict(), {}
        for place, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{place}/{name}"] = value
                else:
                    plain[f"{place}/{name}"] = value
        about = {
            "shares": self.shares,
            "epoch_lr": self.epoch_lr,
            "skipped": self.skipped,
            "optimizer": {"groups": state["param_groups"], "plain": plain},
            "rule": self.rule.state(),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
        }
        return Snapshot(self.number, self.done, self.step, tensors, about)

    def restore(self, snapshot: Snapshot, changed: bool = False) -> None:
        """Stand where a snapshot was taken.

        Args:
            snapshot: Of a network of this very architecture.
            changed: The experiment is another one: weights and moments are taken over, its own learning rate and
                schedule count, and an epoch that was interrupted begins again.

        Raises `UserError` where the snapshot is of other layers.
        """
        about = snapshot.about
        learned = self.network.trainable_state()
        saved = snapshot.part("learned")
        if {name: value.shape for name, value in learned.items()} != {n: v.shape for n, v in saved.items()}:
            raise UserError("The layers that train are not those of the run to go on from; begin a new run.")
        self.network.load_state_dict(saved, strict=False)
        self.number, self.skipped = snapshot.epoch, about["skipped"]
        if not changed:
            self._restore_optimizer(snapshot, about["optimizer"]["groups"])
            self.rule.restore(about["rule"])
            if self.accelerator.scaler is not None and about["scaler"]:
                self.accelerator.scaler.load_state_dict(about["scaler"])
            self.done, self.epoch_lr = snapshot.batch, about["epoch_lr"]
            *sums, self._counted = self._restored(about["shares"])
            self._sums = torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)
            self.shares = about["shares"] if len(about["shares"]) == self.accelerator.num_processes else None
            return
        own = self.optimizer.state_dict()["param_groups"]
        theirs = about["optimizer"]["groups"]
        same = [(set(a), a["params"]) for a in own] == [(set(b), b["params"]) for b in theirs]
        if same:
            self._restore_optimizer(snapshot, own)
        self.rule.forward(self.number * self.batches, about["rule"])
        self.epoch_lr = self.lr

    def close(self) -> None:
        """Let go of the engine's wrappers; a later fit in this process begins with a scaler as this one did."""
        if self.accelerator.scaler is not None and self._scaler_at_first:
            self.accelerator.scaler.load_state_dict(self._scaler_at_first)
        self.accelerator.free_memory()

    def _restore_optimizer(self, snapshot: Snapshot, groups: list[dict[str, Any]]) -> None:
        state: dict[int, dict[str, Any]] = {}
        kept = {**snapshot.part("optimizer"), **snapshot.about["optimizer"]["plain"]}
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        for key, value in kept.items():
            place, _, name = key.partition("/")
            owner = parameters[int(place)]
            if isinstance(value, Tensor) and value.shape == owner.shape:
                # A fused optimiser walks through memory: moments must lie in it as their parameter does.
                value = torch.empty_like(owner, dtype=value.dtype).copy_(value)
            state.setdefault(int(place), {})[name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _restored(self, kept: list[list[float]]) -> list[float]:
        """This process's share of sums; on another number of processes the first one takes them all."""
        mine = self.accelerator.process_index
        if len(kept) == self.accelerator.num_processes:
            return kept[mine]
        return [math.fsum(each) for each in zip(*kept, strict=True)] if mine == 0 else [0.0] * 3

    def _share(self) -> list[float]:
        """Sums of the epoch on this process: loss, hits, and images whose loss was counted."""
        return [*self._sums.tolist(), float(self._counted)]

    def _zeros(self) -> Tensor:
        return torch.zeros(2, dtype=torch.float64, device=self.accelerator.device)

    def _part(self, values: Tensor, batch: np.ndarray, part: Part) -> None:
        """Forward and backward of this process's part of a batch; adds to the sums."""
        target = self.labels[batch[part.rows]].to(values.device)
        with nullcontext() if part.last else self.accelerator.no_sync(self.model):
            logits = self.model(values, start=self.network.split_index)
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
        value = loss.detach()
        said = torch.stack([value * len(batch), hits])
        skips = self.settings.nonfinite == "skip"
        if skips or value.device.type == "cpu":  # elsewhere to ask is to wait for the device
            if math.isfinite(value.item()):
                self._sums += said
                self._counted += len(target)
            elif not skips:
                self._failed.clamp_(max=self.step)
        else:
            self._sums += said
            self._counted += len(target)
            self._failed = torch.minimum(self._failed, torch.where(torch.isfinite(value), NEVER, self.step))

    def _step(self) -> None:
        norm = None
        if self.settings.clip:
            norm = self.accelerator.clip_grad_norm_(self.network.parameters(), self.settings.clip)
        elif self.settings.nonfinite == "skip":
            gradients = [each.grad for each in self.network.parameters() if each.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients)
        # The gradient is every process's, so that they decide alike; a scaler leaves such steps out by itself.
        if self.settings.nonfinite == "skip" and norm is not None and not bool(torch.isfinite(norm)):
            self.skipped += 1
            if self.accelerator.scaler is not None:
                self.prepared.step()
        else:
            self.prepared.step()
        self.prepared.zero_grad()
        self.rule.stepped()


def build_optimizer(optim: OptimConfig, network: TransferModel) -> torch.optim.Optimizer:
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
    generator = torch.Generator().manual_seed(hashing.derive_seed("order", fit_seed, epoch))
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
