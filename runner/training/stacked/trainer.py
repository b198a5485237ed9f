"""The trainings of a stack's heads: their epochs, their callbacks, and how they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from runner.config.schema import Experiment
from runner.evaluation.metrics import TASK, compute_scores
from runner.models.transfer_model import TransferModel
from runner.training.divergence import check_finite, step_diverged
from runner.training.results import EpochResult, is_best, is_out_of_patience
from runner.training.stacked.stack import Batch, HeadStack


@dataclass
class StackedHead:
    """A head to train with others.

    Args:
        experiment: Its settings.
        model: With the head's initial weights; at the end it has those of the last epoch.
        on_epoch: Called after each epoch with its result and the trained tensors by name, which the next step changes.
            If it raises an exception, the head ends with it.
        on_end: Called once, with the error that the head ended with, or None. Stop signals are deferred until it and
            the callbacks of the other heads have returned.
    """

    experiment: Experiment
    model: TransferModel
    on_epoch: Callable[[EpochResult, dict[str, Tensor]], None]
    on_end: Callable[[Exception | None], None]
    history: list[EpochResult] = field(default_factory=list)
    """The finished epochs."""


@dataclass(frozen=True)
class EpochTimes:
    """When an epoch began, had its features, had trained and had validated, for a number of heads and of images."""

    start: float
    loaded: float
    trained: float
    validated: float
    heads: int
    images: int

    def share(self, start: float, end: float) -> float:
        """What a head accounts for of the time between two moments."""
        return (end - start) / self.heads


class StackTrainer:
    """Trains the heads of a stack, and tells each of its epochs and its end.

    Args:
        heads: One or more, of one shape and seed.
        class_weights: Weights of the classes in the loss.
        steps_per_epoch: Optimizer steps of an epoch.
    """

    def __init__(self, heads: Sequence[StackedHead], class_weights: Tensor, steps_per_epoch: int) -> None:
        self.heads = heads
        self.names = list(heads[0].model.trainable_state())
        self.width = heads[0].experiment.model.width
        self.drops = any(head.experiment.model.dropout for head in heads)
        self.steps_per_epoch = steps_per_epoch
        self.stack = HeadStack(
            [head.experiment for head in heads],
            [list(head.model.trainable_state().values()) for head in heads],
            class_weights,
            steps_per_epoch,
        )
        self._sums: list[Tensor] = []
        self._lrs: dict[int, float] = {}

    def start_epoch(self) -> None:
        """Before the first step of an epoch."""
        self._sums = []
        self._lrs = {head: self.stack.lr(head) for head in self.stack.heads}

    def step(self, batch: Batch) -> None:
        """Take a step with each head."""
        self._sums.append(self.stack.step(batch))

    def end_epoch(self, logits: Tensor, labels: np.ndarray, times: EpochTimes) -> None:
        """Score the heads, and let go of those that end with this epoch.

        Args:
            logits: Of the validation images: heads × n × classes.
            labels: Their n class indices.
            times: Of the epoch.
        """
        sums, gone = torch.stack(self._sums), set()
        for place, head in enumerate(self.stack.heads):
            member = self.heads[head]
            try:
                result, ends = self._result(head, sums[:, :, place], (logits[place], labels), times)
                member.history.append(result)
                member.on_epoch(result, self._weights(head))
                error = None
            except Exception as reason:  # it concerns this head, and the others go on
                ends, error = True, reason
            if ends:
                self._end(head, error)
                gone.add(head)
        if gone:
            self.stack.drop(gone)

    def _result(
        self, head: int, sums: Tensor, validated: tuple[Tensor, np.ndarray], times: EpochTimes
    ) -> tuple[EpochResult, bool]:
        """The result of an epoch, and whether it is the head's last one.

        Raises `DivergedError` if a loss is not finite.
        """
        member, (logits, labels) = self.heads[head], validated
        experiment, epoch = member.experiment, len(member.history)
        lr, images = f"optim.lr ({experiment.optim.lr:g})", times.images
        failed = (~sums[:, 0].isfinite()).nonzero()
        if len(failed):
            raise step_diverged(epoch * self.steps_per_epoch + int(failed[0]), self.steps_per_epoch, lr)
        train_loss, train_top1 = (math.fsum(column) / images for column in sums.T.tolist())
        check_finite("training", train_loss, epoch, lr)
        sample_results = TASK.results(logits, torch.tensor(labels))
        scores = compute_scores(sample_results, labels, logits.shape[1])
        check_finite("validation", scores["loss"], epoch, lr)
        before = self.stack.lr(head)
        ends = self.stack.end_epoch(head, scores.hits1) or epoch + 1 == experiment.train.max_epochs
        ends = ends or is_out_of_patience([*(each.val for each in member.history), scores], experiment.train)
        result = EpochResult(
            number=epoch + 1,
            train_loss=train_loss,
            train_top1=train_top1,
            val=scores,
            lr=self._lrs[head],
            best=is_best(scores, member.history, experiment.train.best),
            lr_reduced=self.stack.lr(head) < before,
            sample_results=sample_results,
            seconds=times.share(times.start, times.validated),
            feature_seconds=times.share(times.start, times.loaded),
            images_per_second=images / times.share(times.loaded, times.trained),
        )
        return result, ends

    def _weights(self, head: int) -> dict[str, Tensor]:
        return dict(zip(self.names, self.stack.parameters(head), strict=True))

    def _end(self, head: int, error: Exception | None) -> None:
        member = self.heads[head]
        member.model.load_state_dict(self._weights(head), strict=False)
        member.on_end(error)
