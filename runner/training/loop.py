"""The training loop: the tail of a network on rows, wherever they come from, epoch after epoch.

It stands still between two steps whenever it is asked to: to be kept on disk, or because the process is to stop.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from runner.config.schema import Experiment
from runner.evaluation.inference import Inference
from runner.evaluation.metrics import METRICS, Scores, compute_scores
from runner.features.sources import SplitFeatures
from runner.models.transfer_model import TransferModel
from runner.training.snapshot import Snapshot, reading_state
from runner.training.step import Trainer
from runner.utils.console import Terminal
from runner.utils.errors import DivergedError
from runner.utils.signals import DeferredSignals, defer_signals

MEETING = 0.5
"""Seconds between two moments at which all processes agree on whether to go on."""


@dataclass(frozen=True)
class EpochResult:
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
    skipped: int = 0
    """Steps that were left out since the fit began."""
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
            **({"train/skipped": self.skipped} if self.skipped else {}),
        }

    def as_json(self) -> dict[str, Any]:
        """All but what was judged of each image."""
        return {**asdict(replace(self, judged=torch.empty(0, 3))), "judged": None}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> EpochResult:
        """What `as_json` gave. Raises KeyError or TypeError where it did not."""
        return cls(**{**told, "val": Scores(**told["val"]), "judged": torch.empty(0, 3)})


@dataclass(frozen=True)
class LabeledFeatures:
    """Rows and class indices of a split; `rows` is told the epoch, from 0."""

    rows: Callable[[int], SplitFeatures]
    labels: Sequence[int]


class Keeper(Protocol):
    """Takes snapshots of a fit to disk, and knows the one to go on from."""

    resumed: Snapshot | None
    """To go on from; None: from the beginning. The same on every process."""
    changed: bool
    """It is of another experiment."""

    def due(self, ended: int) -> bool:
        """Whether it is time for one, `ended` epochs having ended since the fit began; False beyond rank 0."""

    def keep(self, snapshot: Snapshot) -> None:
        """Write one. Only for rank 0. Raises OSError."""


def fit(
    experiment: Experiment,
    network: TransferModel,
    train: LabeledFeatures,
    val: LabeledFeatures,
    accelerator: Accelerator,
    chunk: int,
    on_epoch: Callable[[EpochResult], None],
    terminal: Terminal,
    keeper: Keeper | None = None,
) -> list[EpochResult]:
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
        keeper: Takes snapshots, and may have one to go on from; its epochs come first in what is returned.

    Raises `Diverged` when the loss is no longer a number.
    """
    fitting = _Fitting(experiment, network, train, accelerator, keeper)
    try:
        fitting.run(val, chunk, on_epoch, terminal)
    except BaseException:
        fitting.keep_what_there_is()
        raise
    finally:  # a process may fit again, whatever became of this one
        fitting.trainer.close()
    return fitting.history


class _Fitting:
    """One call of `fit`."""

    def __init__(
        self,
        experiment: Experiment,
        network: TransferModel,
        train: LabeledFeatures,
        accelerator: Accelerator,
        keeper: Keeper | None,
    ) -> None:
        self.experiment = experiment
        self.network = network
        self.train = train
        self.accelerator = accelerator
        self.keeper = keeper
        self.trainer = Trainer(experiment, network, torch.tensor(train.labels), accelerator)
        self.history: list[EpochResult] = []
        self.over = False
        self.spent = 0.0
        """Seconds that the epoch took before it was interrupted."""
        if keeper is not None and keeper.resumed is not None:
            self._resume(keeper.resumed, keeper.changed)
        self._began = time.monotonic()
        self._kept = (-1, -1)
        """Epoch and batch of the last snapshot."""
        self._stride, self._since, self._met = 1, 0, time.monotonic()

    def run(self, val: LabeledFeatures, chunk: int, on_epoch: Callable[[EpochResult], None], terminal: Terminal) -> None:
        """Train until the epochs are over, or the schedule says so."""
        trainer, images = self.trainer, len(self.train.labels)
        settings = self.experiment.train
        inference = Inference(self.network, self.accelerator, chunk)
        selected_by = METRICS[settings.best]
        with terminal.progress("train", settings.epochs * images) as advance:
            if trainer.step:
                advance(min(trainer.step * settings.batch_size, settings.epochs * images))
            while trainer.number < settings.epochs and not self.over:
                number, lr = trainer.number, trainer.epoch_lr
                self._began = time.monotonic()
                fresh = images - min(images, trainer.done * settings.batch_size)
                rows = self.train.rows(number) if fresh else _NoRows()
                ready = time.monotonic()
                with defer_signals() as signals:
                    loss, top1 = trainer.epoch(rows, lambda count: self._between(count, signals, advance))
                trained = time.monotonic()
                _check_finite("training", loss, number, self.experiment)
                judged = inference.sample_results(val.rows(number), val.labels)
                scores = compute_scores(judged, val.labels)
                _check_finite("validation", scores["loss"], number, self.experiment)
                with defer_signals() as signals:
                    self.over, reduced = trainer.ended(scores)
                    epoch = EpochResult(
                        number=number + 1,
                        train_loss=loss,
                        train_top1=top1,
                        val=scores,
                        lr=lr,
                        seconds=self.spent + time.monotonic() - self._began,
                        images_per_second=fresh / (trained - ready),
                        best=all(
                            selected_by.better(scores[selected_by.name], each.val[selected_by.name])
                            for each in self.history
                        ),
                        reduced=reduced,
                        skipped=trainer.skipped,
                        judged=judged,
                    )
                    self.history.append(epoch)
                    self.spent, self._began = 0.0, time.monotonic()
                    on_epoch(epoch)
                    last = self.over or trainer.number == settings.epochs
                    if self.keeper is not None:
                        self._meet(signals, last, ended=trainer.number)

    def keep_what_there_is(self) -> None:
        """Keep the fit as it stands, if it stands between two steps: something has ended it."""
        if self.keeper is None or not self.accelerator.is_main_process:
            return
        with suppress(Exception):  # of a full disk, or a device that is lost: what ended the fit is the news
            snapshot = self._snapshot()
            if snapshot is not None and (snapshot.epoch, snapshot.batch) != self._kept:
                self.keeper.keep(snapshot)

    def _resume(self, snapshot: Snapshot, changed: bool) -> None:
        told = snapshot.about
        with reading_state():
            self.history = saved_history(snapshot)
            self.trainer.restore(snapshot, changed)
            self.over = bool(told["over"]) and not changed
            self.spent = 0.0 if changed else float(told["seconds"])

    def _between(self, count: int, signals: DeferredSignals, advance: Callable[[int], None]) -> None:
        """Between two steps: at times all processes agree on whether to keep a snapshot, and whether to stop."""
        advance(count)
        self._since += 1
        if self.accelerator.num_processes == 1:  # it has nobody to ask
            due = self.keeper is not None and self.keeper.due(0)
            if not (due or signals.received is not None) and self._since < self._stride:
                return
        elif self._since < self._stride:
            return
        now = time.monotonic()
        each = max((now - self._met) / self._since, 1e-6)
        self._stride = max(1, min(1000, int(MEETING / each)))
        self._since, self._met = 0, now
        self._meet(signals)

    def _meet(self, signals: DeferredSignals, must: bool = False, ended: int = 0) -> None:
        self.trainer.check()
        due = must or (self.keeper is not None and self.keeper.due(ended))
        told = gather_object([(signals.received, due, self._stride)])
        self._stride = told[0][2]  # rank 0's, so that they meet again
        stop = next((number for number, _, _ in told if number is not None), None)
        if self.keeper is not None and (told[0][1] or stop is not None):
            self.trainer.meet()
            if self.accelerator.is_main_process and (snapshot := self._snapshot()) is not None:
                self.keeper.keep(snapshot)
                self._kept = (snapshot.epoch, snapshot.batch)
        if stop is not None:
            signals.deliver(stop)

    def _snapshot(self) -> Snapshot | None:
        snapshot = self.trainer.capture()
        if snapshot is None or not snapshot.finite:  # the next loss will say so
            return None
        best = [epoch for epoch in self.history if epoch.best]
        if best:
            snapshot.tensors["judged"] = best[-1].judged
        snapshot.about.update(
            history=[epoch.as_json() for epoch in self.history],
            over=self.over,
            seconds=self.spent + time.monotonic() - self._began,
        )
        return snapshot


def saved_history(snapshot: Snapshot) -> list[EpochResult]:
    """The epochs that had ended when a snapshot was taken; the best one with what was judged of each image."""
    epochs = [EpochResult.from_json(each) for each in snapshot.about["history"]]
    best = max((epoch.number for epoch in epochs if epoch.best), default=0)
    judged = snapshot.tensors.get("judged", torch.empty(0, 3))
    return [replace(each, judged=judged) if each.number == best else each for each in epochs]


class _NoRows:
    """Of an epoch whose batches are all done."""

    def batches(self, batches: Sequence[Sequence[int]]) -> Any:
        return iter(())


def _check_finite(which: str, loss: float, number: int, experiment: Experiment) -> None:
    if not math.isfinite(loss):
        raise DivergedError(
            f"The {which} loss is {loss} in epoch {number + 1}: training diverged;"
            f" lower optim.lr ({experiment.optim.lr:g}) or set train.clip."
        )
