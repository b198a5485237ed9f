"""Trainings that are interrupted at a given place and continued from their snapshots, most on features in memory."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from accelerate import Accelerator
from fits import TensorFeatures
from helpers import QUIET, Recorder
from torch import Tensor

from runner.config.schema import CheckpointsConfig, Experiment
from runner.models.transfer_model import TransferModel
from runner.training import run
from runner.training.callbacks.base import Callback
from runner.training.callbacks.snapshot import SnapshotCallback
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.fit_state import FitState
from runner.training.loop import fit
from runner.training.results import EpochResult
from runner.training.snapshot import Snapshot, load_newest
from runner.training.sync import StepSync
from runner.utils.errors import UserError
from runner.utils.signals import Interrupted, interrupt_on_signals, stop_signals

EPOCHS, BATCHES = 3, 3
"""Of a small training: batches of 8, 8 and 4."""
BASE = ("--train.epochs", str(EPOCHS), "--train.batch_size", "8", "--optim.lr", "0.01")
NO_SNAPSHOTS_BY_TIME = CheckpointsConfig(minutes="never")
EVERY_STEP = CheckpointsConfig(minutes=0)


@dataclass(frozen=True)
class Stop:
    """Where a training is interrupted, and how.

    Args:
        where: train: while micro-batch `number` (of all, from 1) is loaded; val: while the features of epoch `number`
            (from 1) are loaded for validation; epoch: by a callback at the end of that epoch.
        number: See there.
        how: signal, or error.
    """

    where: str
    number: int
    how: str = "signal"

    def interrupt(self) -> None:
        if self.how == "signal":
            signal.raise_signal(signal.SIGTERM)
        else:
            raise UserError("The image cannot be read.")


@dataclass
class Views:
    """Training and validation features that interrupt the training.

    Args:
        values: Views of the images, which epochs use in turn.
        labels: Class indices.
        stop: When to interrupt.
    """

    values: Sequence[Tensor]
    labels: list[int]
    stop: Stop | None = None
    loaded = 0
    """Micro-batches so far."""

    def train(self, epoch: int) -> Any:
        return _InterruptingFeatures(self, self.values[epoch % len(self.values)])

    def val(self, epoch: int) -> TensorFeatures:
        self.stop_at("val", epoch + 1)
        return TensorFeatures(_noisy(self.values[0], epoch))

    def stop_at(self, where: str, number: int) -> None:
        if self.stop and (self.stop.where, self.stop.number) == (where, number):
            self.stop.interrupt()


def _noisy(values: Tensor, epoch: int) -> Tensor:
    """More difficult in every other epoch, so that scores go up and down."""
    if not values.is_floating_point():
        return values.flip(0)
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(epoch))
    return values + 20 * (epoch % 2) * noise


@dataclass
class _InterruptingFeatures:
    views: Views
    values: Tensor

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for values in TensorFeatures(self.values).batches(batches):
            self.views.loaded += 1
            self.views.stop_at("train", self.views.loaded)
            yield values


class _Epochs(Callback):
    """Collects the results of epochs, and interrupts at the end of one."""

    def __init__(self, views: Views) -> None:
        self.views = views
        self.history: list[EpochResult] = []

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        self.history.append(result)
        self.views.stop_at("epoch", result.number)


@dataclass
class Outcome:
    """What a training, or a part of one, has reached."""

    history: list[EpochResult]
    weights: dict[str, Tensor]
    error: BaseException | None = None

    def assert_equal(self, other: Outcome) -> None:
        """Check that it is the same to the last bit."""
        assert without_times(self.history) == without_times(other.history)
        best = max(result.number for result in self.history if result.best)
        for mine, theirs in zip(self.history, other.history, strict=True):
            if mine.number == best:
                assert torch.equal(mine.sample_results, theirs.sample_results)
        assert self.weights.keys() == other.weights.keys()
        for name, value in self.weights.items():
            assert torch.equal(value, other.weights[name]), name


def without_times(history: Sequence[EpochResult]) -> list[dict[str, Any]]:
    """The values of epochs, without how long they took."""
    times = ("seconds", "feature_seconds", "images_per_second")
    return [{k: v for k, v in result.to_dict().items() if k not in times} for result in history]


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Signals raise `Interrupted` within the block, as in a command."""
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    interrupt_on_signals()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Training:
    """A training that can be run again and again, whole or in parts.

    Args:
        experiment: Its settings.
        model: The model; `weights` are its initial weights.
        views: Values and labels.
        accelerator: In which it runs.
    """

    experiment: Experiment
    model: TransferModel
    weights: dict[str, Tensor]
    views: tuple[Sequence[Tensor], list[int]]
    accelerator: Accelerator

    def run(
        self,
        folder: Path | None = None,
        stop: Stop | None = None,
        settings: CheckpointsConfig = NO_SNAPSHOTS_BY_TIME,
        branch: bool = False,
        damaged: bool = False,
    ) -> Outcome:
        """Train until the end or an interruption; from the newest snapshot in a folder, if there is one.

        Args:
            folder: Of snapshots; None: none are written.
            stop: When to interrupt.
            settings: When to write snapshots.
            branch: The snapshots are of other settings.
            damaged: Whether damaged snapshots are expected.
        """
        self.model.load_state_dict(self.weights, strict=False)
        self.model.zero_grad()
        views = Views(*self.views, stop)
        epochs = _Epochs(views)
        callbacks: list[Callback] = [epochs]
        if folder is not None:
            resume_from, problems = load_newest(folder)
            assert bool(problems) == damaged
            callbacks.append(SnapshotCallback(folder, settings, resume_from=resume_from, is_branch=branch))
        train, val = (LabeledFeatures(load, views.labels) for load in (views.train, views.val))
        history, error = epochs.history, None
        with signals_interrupt():
            try:
                data = FitData(train, val, batch_size=8)
                history = fit(self.experiment, self.model, data, self.accelerator, callbacks)
            except BaseException as raised:
                error = raised
        weights = {name: value.detach().clone() for name, value in self.model.trainable_state().items()}
        return Outcome(history, weights, error)


NewTraining: TypeAlias = Callable[..., Training]
"""`new_training("--optim.lr", "0.1", …)`: the fixture that creates trainings."""


def interrupt_run(experiment: Experiment, accelerator: Accelerator, records: Recorder, step: int) -> Snapshot:
    """Run an experiment until a stop signal after optimizer step `step`, from 1; its newest snapshot."""
    steps, after_step = itertools.count(1), StepSync.after_step

    def stopping(self: StepSync, *args: Any) -> None:
        after_step(self, *args)
        if next(steps) == step:
            raise Interrupted(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepSync, "after_step", stopping)
        with pytest.raises(Interrupted):
            run.train(experiment, accelerator, records, QUIET)
    snapshot, _ = load_newest(records.folder / "state")
    assert snapshot is not None
    return snapshot
