"""What training returns: the result of each epoch, and of a whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from runner.evaluation.metrics import METRICS, Scores
from runner.evaluation.predictions import Predictions


def _no_samples() -> Tensor:
    return torch.empty(0, 3)


@dataclass(frozen=True)
class EpochResult:
    """An epoch, after its validation."""

    number: int
    """From 1."""
    train_loss: float
    """Mean over the epoch's batches, in training mode."""
    train_top1: float
    val: Scores
    lr: float
    """Learning rate at the start of the epoch."""
    seconds: float
    """Features, training and validation."""
    images_per_second: float
    """Of training alone."""
    best: bool
    """Better than all epochs before, by the validation metric that `train.best` names; ties go to the lower loss."""
    lr_reduced: bool
    """The schedule reduced the learning rate at the end of the epoch."""
    feature_seconds: float = 0.0
    """Of `seconds`: loading features, or computing those that were not cached yet."""
    skipped_steps: int = 0
    """Steps that were skipped since training began (`train.nonfinite=skip`)."""
    sample_results: Tensor = field(default_factory=_no_samples, repr=False, compare=False)
    """Results of single validation images: n × 3, as `metrics.sample_results` returns them."""

    def metrics(self) -> dict[str, float]:
        """The values as they are logged."""
        return {
            "train/loss": self.train_loss,
            "train/top1": self.train_top1,
            **self.val.metrics("val"),
            "lr": self.lr,
            "images_per_second": self.images_per_second,
            "epoch_seconds": self.seconds,
            **({"train/skipped": self.skipped_steps} if self.skipped_steps else {}),
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without `sample_results`."""
        fields = asdict(replace(self, val=None, sample_results=_no_samples()))  # type: ignore[arg-type]
        del fields["sample_results"]
        return {**fields, "val": self.val.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EpochResult:
        """The inverse of `to_dict`. Raises KeyError or TypeError for other content."""
        return cls(**{**content, "val": Scores.from_dict(content["val"])})


def is_best(scores: Scores, history: Sequence[EpochResult], metric: str) -> bool:
    """Whether an epoch is better than all before by a metric, or as good with a lower loss."""
    sign = METRICS[metric].sign

    def quality(scores: Scores) -> tuple[float, float]:
        return sign * scores[metric], -scores["loss"]

    return all(quality(scores) > quality(before.val) for before in history)


def best_epoch(history: Sequence[EpochResult]) -> EpochResult:
    """The epoch whose weights are the best checkpoint: the last one that was better than all before."""
    return next(epoch for epoch in reversed(history) if epoch.best)


@dataclass(frozen=True)
class RunResult:
    """A finished run: its epochs, and the test scores of its two checkpoints."""

    history: tuple[EpochResult, ...]
    best: Scores
    """Of the best checkpoint on the test split."""
    last: Scores
    """Of the last checkpoint on the test split."""
    on_fold: Predictions | None = field(default=None, repr=False, compare=False)
    """Of the best checkpoint on the fold of a cross-validation; None without folds, and in a result that was stored."""

    @property
    def best_epoch(self) -> EpochResult:
        """The epoch of the best checkpoint."""
        return best_epoch(self.history)

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without `sample_results` and `on_fold`."""
        history = [epoch.to_dict() for epoch in self.history]
        return {"history": history, "best": self.best.to_dict(), "last": self.last.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> RunResult:
        """The inverse of `to_dict`. Raises KeyError or TypeError for other content."""
        history = tuple(EpochResult.from_dict(epoch) for epoch in content["history"])
        return cls(history, Scores.from_dict(content["best"]), Scores.from_dict(content["last"]))
