"""Runs several trials at once: trainings that can be stacked are trained together, the others one by one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from runner.models.transfer_model import TransferModel
from runner.study.trial_training import TrialGenerator, TrialTraining
from runner.training import run
from runner.training.stacked.compatible import stack_key
from runner.training.stacked.fit import fit_stacked
from runner.training.stacked.trainer import StackedHead
from runner.utils.console import Terminal
from runner.utils.signals import defer_signals


class OthersFailed(BaseException):
    """A trial is stopped because the worker fails. Not an `Exception`: the trial itself has not failed."""


def train_together(trials: Sequence[TrialGenerator]) -> None:
    """Run trials to their ends.

    Raises what a trial raises; the others are stopped with it before, but for those that have done all their trainings.
    """
    batch = _Batch()
    try:
        for trial in trials:
            batch.advance(trial)
        batch.train()
    except BaseException as error:
        # Other trials would take an exception for their own failure, unless it is one of the machine.
        concerns_all = isinstance(error, OSError) or not isinstance(error, Exception)
        for trial in trials:
            batch.stop(trial, error if concerns_all else OthersFailed(str(error)))
        raise


@dataclass
class _Batch:
    """Trials that wait for a training each."""

    waiting: list[tuple[TrialGenerator, TrialTraining]] = field(default_factory=list)
    ended: dict[TrialGenerator, TrialTraining] = field(default_factory=dict)
    """Trials that have not gone on since their training ended, and that training."""
    models: list[TransferModel] = field(default_factory=list)
    """One with each set of frozen weights."""

    def advance(self, trial: TrialGenerator, error: BaseException | None = None) -> None:
        """Let a trial go on to its next training or its end, perhaps after an error of the one before."""
        try:
            training = trial.throw(error) if error is not None else next(trial)
        except StopIteration:
            return
        self._share_frozen_weights(training.setup.model)
        self.waiting.append((trial, training))

    def stop(self, trial: TrialGenerator, error: BaseException) -> None:
        """Stop a trial; one that has ended stays as it is, and one without another training ends as usual."""
        try:
            if trial in self.ended and self.ended[trial].ends_trial:
                self._resume(trial)
            trial.throw(error)
        except BaseException as reason:  # it has stopped, and the first error is raised
            if reason is not error and not isinstance(reason, StopIteration):
                error.add_note(f"stopping another trial failed: {reason}")

    def train(self) -> None:
        """Train until no trial waits."""
        while self.waiting:
            groups: dict[object, list[tuple[TrialGenerator, TrialTraining]]] = {}
            for trial, training in self.waiting:
                key = stack_key(training.setup.experiment) or trial
                groups.setdefault(key, []).append((trial, training))
            self.waiting = []
            for group in groups.values():
                if len(group) == 1:
                    self._train_alone(*group[0])
                else:
                    self._train_stacked(group)

    def _train_alone(self, trial: TrialGenerator, training: TrialTraining) -> None:
        start, failure = time.monotonic(), None
        try:
            run.fit_setup(training.setup, [training], Terminal(enabled=False))
        except BaseException as error:  # the trial decides, and raises it again
            failure = error
        training.seconds = time.monotonic() - start
        self.advance(trial, failure)

    def _train_stacked(self, group: Sequence[tuple[TrialGenerator, TrialTraining]]) -> None:
        def end(trial: TrialGenerator, training: TrialTraining, error: Exception | None) -> None:
            training.seconds = sum(epoch.seconds for epoch in training.history)
            training.error = error
            self.ended[trial] = training

        heads = [
            StackedHead(
                training.setup.experiment,
                training.setup.model,
                training.on_epoch,
                partial(end, trial, training),
            )
            for trial, training in group
        ]
        setup = group[0][1].setup
        fit_stacked(heads, run.fit_data(setup), setup.accelerator, self._resume_ended)

    def _resume_ended(self) -> None:
        while self.ended:
            self._resume(next(iter(self.ended)))

    def _resume(self, trial: TrialGenerator) -> None:
        """Let a trial go on whose training has ended. An interrupt waits until its results are stored."""
        training = self.ended.pop(trial)
        with defer_signals() if training.ends_trial else nullcontext():
            self.advance(trial, training.error)

    def _share_frozen_weights(self, model: TransferModel) -> None:
        """Let models with the same frozen weights have them once in memory."""
        own = model.frozen_state()
        for other in self.models:
            theirs = other.frozen_state()
            if own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own):
                parameters = dict(other.named_parameters())
                for name, parameter in model.named_parameters():
                    if not parameter.requires_grad:
                        parameter.data = parameters[name].data
                return
        self.models.append(model)
