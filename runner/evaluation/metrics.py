"""Metrics: one table that everything reads, and their exact computation on any number of processes.

A metric is a function of the sample results of a split: n × 3, float64, columns `LOSS`, `RANK` and `PREDICTED`. To add
one, write that function and `register` it: evaluation, run logs, `train.best`, studies, comparisons and reports read
the table `METRICS`. `TASK` says what models are trained for. Torch is imported only where it computes, so that command
lines can read the table without delay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from runner.config.choices import METRIC_NAMES

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from torch import Tensor

TOP_K = 5
LOSS, RANK, PREDICTED = 0, 1, 2
"""Columns of sample results: cross-entropy in nats, rank of the true class (0: correct), predicted class."""


@dataclass(frozen=True)
class Metric:
    """A figure that summarizes the sample results of a split."""

    name: str
    """As in `val/<name>`, settings and the command line."""
    label: str
    """As people read it: in tables, plots and reports."""
    direction: Literal["maximize", "minimize"]
    compute: Callable[[Tensor, Tensor], float]
    """Value from sample results (n × 3) and labels (n class indices), for n ≥ 1."""
    counted: bool = True
    """Whether it depends on integer counts only: then equal predictions give exactly equal values."""
    resampled: Callable[[np.ndarray], np.ndarray] | None = None
    """Values of bootstrap resamples, from their images by class and rank: resamples × classes × 3, where the last axis
    counts rank 0, ranks 1 to 4, and the rest. None: reports give no interval."""
    share_of: Literal["images", "classes", ""] = ""
    """Whether it is a share of the images, or the mean over classes of the shares of their images. Then reports give an
    exact interval where it is 0 or 1, since all resamples are equal."""
    min_classes: int = 2
    """With fewer classes it is the same for every model: it is recorded, but not shown."""

    @property
    def sign(self) -> int:
        """1 if larger values are better, else -1."""
        return 1 if self.direction == "maximize" else -1

    def better(self, value: float, than: float) -> bool:
        """Whether a value is strictly better than another; NaN is neither better nor worse."""
        return self.sign * value > self.sign * than


def _top_k(k: int, levels: int) -> Metric:
    """Top-k accuracy; `levels`: how many columns of resampled counts have ranks below k."""
    return Metric(
        name=f"top{k}",
        label=f"top-{k}",
        direction="maximize",
        compute=lambda results, labels: int((results[:, RANK] < k).sum()) / len(results),
        resampled=lambda counts: counts[:, :, :levels].sum(axis=(1, 2)) / counts.sum(axis=(1, 2)),
        share_of="images",
        min_classes=k + 1,
    )


def _loss(results: Tensor, labels: Tensor) -> float:
    return float(results[:, LOSS].mean())


def _balanced_accuracy(results: Tensor, labels: Tensor) -> float:
    """Mean recall over the classes that have images."""
    images = labels.bincount()
    correct = labels.bincount(weights=(results[:, RANK] == 0).double())
    present = images > 0
    return float((correct[present] / images[present]).mean())


def _resampled_balanced_accuracy(counts: np.ndarray) -> np.ndarray:
    images = counts.sum(axis=2)
    recall = counts[:, :, 0] / images.clip(1)
    return recall.sum(axis=1) / (images > 0).sum(axis=1)


METRICS: dict[str, Metric] = {}
"""All metrics by name, in the order of tables."""


def register(metric: Metric) -> None:
    """Add a metric to the table, and so to the values of `train.best` and `train.monitor`."""
    METRICS[metric.name] = metric
    METRIC_NAMES.register(metric.name, metric.label)(metric)


register(_top_k(1, levels=1))
register(_top_k(TOP_K, levels=2))
register(
    Metric(
        name="balanced_accuracy",
        label="balanced accuracy",
        direction="maximize",
        compute=_balanced_accuracy,
        resampled=_resampled_balanced_accuracy,
        share_of="classes",
    )
)
register(Metric(name="loss", label="loss", direction="minimize", compute=_loss, counted=False))


@dataclass(frozen=True)
class Task:
    """What depends on the kind of targets. Those of an image are its class index (`Manifest.labels`)."""

    loss: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    """The training loss, summed over images, of logits (n × classes), targets (n), class weights and smoothing."""
    activation: Callable[[np.ndarray], np.ndarray]
    """Probabilities from logits: n × classes."""
    results: Callable[[Tensor, Tensor], Tensor]
    """Sample results (n × 3) from logits (n × classes) and targets (n)."""
    metrics: Mapping[str, Metric]
    """What they are summarized by."""


def metric_of(metric_key: str) -> Metric | None:
    """The metric that a logged name such as `test/best/top1` ends with; None for names of other figures."""
    return METRICS.get(metric_key.rpartition("/")[2])


def shown_metrics(classes: int) -> list[Metric]:
    """The metrics in which models of so many classes can differ; all if it is 0, not known."""
    return [metric for metric in METRICS.values() if not classes or classes >= metric.min_classes]


@dataclass(frozen=True)
class Scores:
    """The metrics of a model on a split."""

    values: Mapping[str, float]
    """Value of each metric, by name, in the order of `METRICS`. Shares are between 0 and 1."""
    images: int
    hits1: int
    """Images whose true class ranks first."""
    hits5: int
    """Images whose true class is among the first five."""
    classes: int = 0
    """Classes of the model; 0: not known."""

    @property
    def shown(self) -> list[Metric]:
        """The metrics in which models of so many classes can differ, in the order of `METRICS`."""
        return shown_metrics(self.classes)

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def metrics(self, prefix: str) -> dict[str, float]:
        """The values as they are logged: `{"val/top1": …}` for the prefix `val`."""
        return {f"{prefix}/{name}": value for name, value in self.values.items()}

    def to_dict(self) -> dict[str, Any]:
        """A flat dictionary for JSON."""
        counts = {"images": self.images, "hits1": self.hits1, "hits5": self.hits5, "classes": self.classes}
        return {**self.values, **counts}

    @classmethod
    def from_dict(cls, flat: Mapping[str, Any]) -> Scores:
        """The inverse of `to_dict`. Raises KeyError if an entry is missing."""
        values = {name: flat[name] for name in METRICS}
        return cls(values, flat["images"], flat["hits1"], flat["hits5"], flat.get("classes", 0))


def sample_results(logits: Tensor, labels: Tensor) -> Tensor:
    """The results of single images, from which metrics are computed: n × 3, float64.

    The rank of the true class is the number of classes before it: those with a larger logit, and those with an equal
    logit and a smaller index, so that ties are broken the same way everywhere. If any logit of an image is not finite,
    the rank is infinite.

    Args:
        logits: n × classes.
        labels: n class indices.
    """
    import torch
    from torch.nn.functional import cross_entropy

    from runner.utils.tensors import float64_device

    logits = logits.to(float64_device(logits.device)).double()
    labels = labels.to(logits.device)
    loss = cross_entropy(logits, labels, reduction="none")
    true = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > true) | ((logits == true) & (classes < labels[:, None]))
    rank = before.sum(1).double()
    rank[~logits.isfinite().all(1)] = math.inf
    return torch.stack([loss, rank, logits.argmax(1).double()], dim=1)


def gather(indices: Sequence[int], rows: Tensor, total: int, accelerator: Accelerator) -> Tensor:
    """Collect the rows of all processes in the order of the split: total × columns, float64, on the CPU.

    Args:
        indices: Index in the split of each row of `rows`.
        rows: This process's rows, such as sample results or logits.
        total: Images in the split.
        accelerator: Gathers from all processes.

    Raises:
        RuntimeError: An image is missing or occurs twice.
    """
    import torch

    numbered = torch.cat(
        [torch.tensor(indices, dtype=torch.float64, device=rows.device)[:, None], rows], dim=1
    )
    padded = accelerator.pad_across_processes(numbered, dim=0, pad_index=-1)
    gathered = accelerator.gather(padded).cpu()
    gathered = gathered[gathered[:, 0] >= 0]
    gathered = gathered[gathered[:, 0].argsort(stable=True)]
    if gathered[:, 0].tolist() != list(range(total)):
        raise RuntimeError(f"{len(gathered)} gathered rows do not cover the {total} images once each")
    return gathered[:, 1:]


def compute_scores(results: Tensor, labels: np.ndarray | Sequence[int], classes: int) -> Scores:
    """All metrics of a split.

    Args:
        results: n × 3, as `sample_results` returns them, in the order of `labels`.
        labels: The n true class indices.
        classes: Number of classes of the model.
    """
    import torch

    true = torch.tensor(labels, device=results.device)
    rank = results[:, RANK]
    return Scores(
        {name: metric.compute(results, true) for name, metric in TASK.metrics.items()},
        images=len(labels),
        hits1=int((rank == 0).sum()),
        hits5=int((rank < TOP_K).sum()),
        classes=classes,
    )


def scores_from_logits(logits: Tensor, labels: np.ndarray | Sequence[int]) -> Scores:
    """All metrics of a split, from its logits (n × classes) and n class indices."""
    import torch

    results = TASK.results(logits, torch.tensor(labels, device=logits.device))
    return compute_scores(results, labels, logits.shape[1])


def _cross_entropy(logits: Tensor, targets: Tensor, class_weights: Tensor, smoothing: float) -> Tensor:
    from torch.nn.functional import cross_entropy

    weights = class_weights.to(logits.device)
    return cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=smoothing)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, n × classes. A row with a logit that is not finite becomes NaN."""
    import numpy as np
    from scipy import special

    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    return np.where(finite, special.softmax(np.where(finite, logits, 0.0), axis=1), np.nan)


TASK = Task(loss=_cross_entropy, activation=softmax, results=sample_results, metrics=METRICS)
"""Classification with one label per image."""
