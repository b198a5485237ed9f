"""The state of a training: what the loop changes, callbacks read, and snapshots save."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from runner.config.schema import Experiment
from runner.evaluation.metrics import Scores
from runner.features.sources import SplitFeatures
from runner.models.freezing import first_trainable
from runner.models.transfer_model import TransferModel
from runner.training.fit_data import LabeledFeatures
from runner.training.results import EpochResult, best_epoch, is_out_of_patience
from runner.training.snapshot import Snapshot, restoring
from runner.training.solvers.solve import Solution
from runner.training.step import TrainStep
from runner.utils.errors import UserError


class FitState:
    """A training in progress.

    Args:
        experiment: Its settings `train`, `optim`, `schedule` and `seed` count.
        model: Not wrapped, on the accelerator's device, with its final frozen weights.
        labels: Class indices of the training split.
        accelerator: Device, precision and processes.
    """

    def __init__(
        self, experiment: Experiment, model: TransferModel, labels: np.ndarray, accelerator: Accelerator
    ) -> None:
        self.experiment = experiment
        self.model = model
        self.accelerator = accelerator
        self.labels = torch.tensor(labels)
        self.train_step = TrainStep(experiment, model, self.labels, accelerator)
        self.epoch = 0
        """The current epoch, from 0."""
        self.epoch_lr, self.epoch_group_lrs = self.train_step.lr, self.train_step.group_lrs
        """Learning rates at its start."""
        self.history: list[EpochResult] = []
        self.solution: Solution | None = None
        """What a solver found, on rank 0."""
        self.stopped_early = False
        self.feature_seconds = 0.0
        """Time that the features of the current epoch took so far."""
        self._seconds_before = 0.0
        """Time that the current epoch took before an interruption."""
        self._resumed_at = time.monotonic()

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        return self.stopped_early or self.epoch >= self.experiment.train.max_epochs

    @property
    def batch(self) -> int:
        """Batches of the current epoch that are done."""
        return self.train_step.steps_taken - self.epoch * self.train_step.steps_per_epoch

    @property
    def images_done(self) -> int:
        """Images of the current epoch that are done."""
        return min(len(self.labels), self.batch * self.experiment.train.batch_size)

    @property
    def epoch_seconds(self) -> float:
        """Time that the current epoch has taken so far."""
        return self._seconds_before + time.monotonic() - self._resumed_at

    def load(self, features: LabeledFeatures, epoch: int) -> SplitFeatures:
        """Features for an epoch; the time that they take is measured."""
        start = time.monotonic()
        loaded = features.load(epoch)
        self.feature_seconds += time.monotonic() - start
        return loaded

    def start_timer(self) -> None:
        """Start or continue to measure `epoch_seconds`."""
        self._resumed_at = time.monotonic()

    @contextmanager
    def weights_of(self, result: EpochResult) -> Iterator[None]:
        """Within the block, the model has the weights that the scores of the last epoch are of."""
        average = self.train_step.average
        with average.applied() if average is not None and result.averaged else nullcontext():
            yield

    def keep_average(self) -> None:
        """At the end, give the model the average of its weights if that was better in the last epoch."""
        if self.train_step.average is not None and self.history[-1].averaged:
            self.train_step.average.apply()

    def advance_epoch(self, val: Scores, hits: int) -> bool:
        """Go on to the next epoch after validation: let the schedule see the scores, and decide whether to stop.

        Args:
            val: Of the epoch.
            hits: Correct predictions of the weights that train, for the schedule.

        All processes call it together; rank 0's scores decide. Returns whether the learning rate was reduced.
        """
        scores = [*(epoch.val for epoch in self.history), val]
        is_stale = is_out_of_patience(scores, self.experiment.train)
        # First: it fails where another process is gone, and then the epoch is not validated yet in the snapshot.
        hits, is_stale = broadcast_object_list([(hits, is_stale)])[0]
        step, lr = self.train_step, self.train_step.lr
        ends = step.schedule.end_epoch(hits) or is_stale
        lr_reduced = step.lr < lr
        self.stopped_early = ends and step.stage + 1 == len(self.experiment.stages)
        self.epoch += 1
        if (stage := self.experiment.train.stage_of(self.epoch)) != step.stage:
            step.start_stage(stage, step.optimizer.state)
        self.epoch_lr, self.epoch_group_lrs = step.lr, step.group_lrs
        step.sums.reset()
        return lr_reduced

    def record(self, result: EpochResult) -> None:
        """Add a finished epoch to the history."""
        self.history.append(result)
        self._seconds_before = self.feature_seconds = 0.0
        self.start_timer()

    def capture(self) -> Snapshot | None:
        """A snapshot of the current state.

        None in the middle of a step, if the sums of other processes are not known here, or if weights are not finite:
        then the next loss will not be finite either, and training will stop.
        """
        step, scaler = self.train_step, self.accelerator.scaler
        sums = step.sums.state()
        if not step.between_steps or sums is None:
            return None
        tensors, optimizer = _optimizer_state(step.optimizer)
        tensors |= {f"trainable/{name}": value for name, value in self.model.trainable_state().items()}
        if step.average is not None:
            tensors |= {f"average/{name}": value for name, value in step.average.tensors.items()}
        if any(epoch.best for epoch in self.history):
            tensors["sample_results"] = best_epoch(self.history).sample_results
        values = {
            "sums": sums,
            "epoch_lr": self.epoch_lr,
            "epoch_group_lrs": self.epoch_group_lrs,
            "skipped_steps": step.skipped,
            "trainable": self.experiment.stages[step.stage].trainable,
            "stage_begins": self.experiment.first_epoch(step.stage),
            "averaged_epochs": step.average.epochs if step.average is not None else 0,
            "optimizer": optimizer,
            "schedule": step.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "history": [epoch.to_dict() for epoch in self.history],
            "stopped_early": self.stopped_early,
            "epoch_seconds": self.epoch_seconds,
            "feature_seconds": self.feature_seconds,
        }
        snapshot = Snapshot(self.epoch, self.batch, step.steps_taken, tensors, values)
        return snapshot if snapshot.is_finite else None

    def restore(self, snapshot: Snapshot, branch: bool = False) -> None:
        """Continue from a snapshot of a model with the same architecture.

        Args:
            snapshot: To continue from.
            branch: With other settings: weights and optimizer state are restored, but learning rate and schedule are
                those of the new settings, and an interrupted epoch starts again.

        Raises `UserError` if other layers train, or another version wrote the snapshot.
        """
        with restoring():
            values = snapshot.values
            if branch:
                self._check_branch(snapshot)
            if (stage := self.experiment.train.stage_of(snapshot.epoch)) != self.train_step.stage:
                self.train_step.start_stage(stage)
            self.history = saved_history(snapshot)
            self._restore_weights(snapshot.tensors_under("trainable"))
            self.epoch, self.train_step.skipped = snapshot.epoch, values["skipped_steps"]
            self._restore_average(snapshot)
            if branch:
                self._branch(snapshot)
                return
            _restore_optimizer(self.train_step.optimizer, snapshot, values["optimizer"]["groups"])
            self.train_step.schedule.load_state_dict(values["schedule"])
            if self.accelerator.scaler is not None and values["scaler"]:
                self.accelerator.scaler.load_state_dict(values["scaler"])
            self.train_step.steps_taken, self.epoch_lr = snapshot.step, values["epoch_lr"]
            self.epoch_group_lrs = values.get("epoch_group_lrs", {})
            self.train_step.sums.restore(values["sums"])
            self.stopped_early = bool(values["stopped_early"])
            self._seconds_before = float(values["epoch_seconds"])
            self.feature_seconds = float(values.get("feature_seconds", 0))

    def _check_branch(self, snapshot: Snapshot) -> None:
        """Raise `UserError` if layers are to be frozen that the run has trained: their features are stored as they were
        before."""
        then = snapshot.values.get("trainable", self.model.spec.trainable)
        stage = self.experiment.train.stage_of(snapshot.epoch)
        now = self.experiment.stages[stage].trainable
        if first_trainable(self.model, now) > first_trainable(self.model, then):
            raise UserError(
                f"The run to branch from has trained {then} by epoch {snapshot.epoch}, but stage {stage + 1} of"
                f" train.stages trains only {now} from there on; let it train {then}."
            )

    def _restore_weights(self, saved: dict[str, Tensor]) -> None:
        current = self.model.trainable_state()
        if {name: value.shape for name, value in current.items()} != {n: v.shape for n, v in saved.items()}:
            raise UserError("The run to resume trains other layers; start a new run.")
        self.model.load_state_dict(saved, strict=False)

    def _restore_average(self, snapshot: Snapshot) -> None:
        """Continue an average. A branch with another kind of average begins with the weights."""
        if (average := self.train_step.average) is not None:
            saved = snapshot.tensors_under("average") or self.model.trainable_state()
            average.load(saved, snapshot.values.get("averaged_epochs", 0))

    def _branch(self, snapshot: Snapshot) -> None:
        step = self.train_step
        own = step.optimizer.state_dict()["param_groups"]
        saved = snapshot.values["optimizer"]["groups"]
        # The moments of another optimizer, or of differently grouped parameters, mean nothing here.
        if [(set(group), group["params"]) for group in own] == [(set(g), g["params"]) for g in saved]:
            _restore_optimizer(step.optimizer, snapshot, own)
        step.steps_taken = self.epoch * step.steps_per_epoch
        first_epoch = self.experiment.first_epoch(step.stage)
        is_same_stage = snapshot.values.get("stage_begins", 0) == first_epoch
        schedule = snapshot.values["schedule"] if is_same_stage else {}
        step.schedule.fast_forward(step.steps_taken - first_epoch * step.steps_per_epoch, schedule)
        self.epoch_lr, self.epoch_group_lrs = step.lr, step.group_lrs


def saved_history(snapshot: Snapshot) -> list[EpochResult]:
    """The finished epochs in a snapshot; only the best one has its `sample_results`."""
    history = [EpochResult.from_dict(epoch) for epoch in snapshot.values["history"]]
    best = max((epoch.number for epoch in history if epoch.best), default=0)
    if best:
        history[best - 1] = replace(history[best - 1], sample_results=snapshot.tensors["sample_results"])
    return history


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimizer's tensors as `optimizer/INDEX/NAME`, and its other values."""
    state, tensors, plain = optimizer.state_dict(), {}, {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain[f"{index}/{name}"] = value
    return tensors, {"groups": state["param_groups"], "plain": plain}


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, snapshot: Snapshot, groups: list[dict[str, Any]]
) -> None:
    """Load the saved state of each parameter, with these parameter groups."""
    state: dict[int, dict[str, Any]] = {}
    saved = {**snapshot.tensors_under("optimizer"), **snapshot.values["optimizer"]["plain"]}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in saved.items():
        index, _, name = key.partition("/")
        parameter = parameters[int(index)]
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            # A fused optimizer walks through memory: moments must have the memory layout of their parameter.
            value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
