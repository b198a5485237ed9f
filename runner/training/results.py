"""What training returns: the result of each epoch, and of a whole run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from runner.config.train_schema import TrainConfig
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
    """Learning rate at the start of the epoch, of the head."""
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
    averaged: bool = False
    """Whether `val` is of the average of the weights, because that was better."""
    others: Scores | None = None
    """Validation scores of the worse of the weights and their average; None if there is no average."""
    group_lrs: dict[str, float] = field(default_factory=dict)
    """Learning rates at the start of the epoch by parameter group; empty if all have the same settings."""
    sample_results: Tensor = field(default_factory=_no_samples, repr=False, compare=False)
    """Results of single validation images: n × 3, as `metrics.sample_results` returns them."""

    def metrics(self) -> dict[str, float]:
        """The values as they are logged."""
        return {
            "train/loss": self.train_loss,
            "train/top1": self.train_top1,
            **self.val.metrics("val"),
            **self._other_metrics(),
            "lr": self.lr,
            **{f"lr/{name}": value for name, value in self.group_lrs.items()},
            "images_per_second": self.images_per_second,
            "epoch_seconds": self.seconds,
            **({"train/skipped": self.skipped_steps} if self.skipped_steps else {}),
        }

    def _other_metrics(self) -> dict[str, float]:
        """Those of the worse of the weights and their average."""
        if self.others is None:
            return {}
        return {
            **self.others.metrics("val/weights" if self.averaged else "val/average"),
            "averaged": self.averaged,
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without `sample_results`."""
        fields = asdict(replace(self, val=None, others=None, sample_results=_no_samples()))  # type: ignore[arg-type]
        del fields["sample_results"]
        others = self.others.to_dict() if self.others is not None else None
        return {**fields, "val": self.val.to_dict(), "others": others}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EpochResult:
        """The inverse of `to_dict`. Raises KeyError or TypeError for other content."""
        others = content.get("others")
        scores = {"val": Scores.from_dict(content["val"]), "others": others and Scores.from_dict(others)}
        return cls(**{**content, **scores})


def is_best(scores: Scores, history: Sequence[EpochResult], metric: str) -> bool:
    """Whether an epoch is better than all before by a metric, or as good with a lower loss."""
    return all(_quality(scores, metric) > _quality(before.val, metric) for before in history)


def is_better(scores: Scores, than: Scores, metric: str) -> bool:
    """Whether scores are better by a metric, or as good with a lower loss."""
    return _quality(scores, metric) > _quality(than, metric)


def is_out_of_patience(scores: Sequence[Scores], settings: TrainConfig) -> bool:
    """Whether `train.patience` ends the training; only epochs of the last stage count.

    Args:
        scores: Validation scores of all epochs.
        settings: The patience and what it watches.
    """
    if not settings.patience:
        return False
    of_last_stage = len(scores) - sum(stage.epochs for stage in settings.stages[:-1])
    return min(of_last_stage, epochs_without_gain(scores, settings.watched_metric)) >= settings.patience


def epochs_without_gain(scores: Sequence[Scores], metric: str) -> int:
    """Epochs since the best one by a metric.

    Args:
        scores: Of all epochs.
        metric: A validation metric. As good with a lower loss is better.
    """
    qualities = [_quality(each, metric) for each in scores]
    return len(qualities) - 1 - qualities.index(max(qualities))


def _quality(scores: Scores, metric: str) -> tuple[float, float]:
    return METRICS[metric].sign * scores[metric], -scores["loss"]


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
