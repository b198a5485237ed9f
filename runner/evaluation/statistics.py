"""Statistics of predictions: scores per class, confused classes, calibration, and confidence intervals.

An image whose logits are not finite has no prediction. It counts as wrong, for no predicted class, and has no
confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runner.evaluation.metrics import METRICS, TASK, TOP_K
from runner.evaluation.predictions import Predictions

BINS = 15
"""Confidence bins, as in Guo et al. (2017)."""
TEMPERATURES = (0.05, 20.0)
"""Range in which the temperature is searched."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of a class, between 0 and 1; NaN where a score is undefined."""

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    """Images of the class."""
    predicted: int
    """Images predicted as the class."""


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were predicted as another."""

    true: str
    predicted: str
    count: int
    share: float
    """Of the true class's images."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """How well confidence predicts accuracy: expected and maximum calibration error (0 to 1), and the bins."""

    ece: float
    mce: float
    edges: np.ndarray
    """Of the n bins, n + 1 confidences from 0 to 1; bin i has the confidences in (edges[i], edges[i + 1]]."""
    count: np.ndarray
    """Images in each bin."""
    confidence: np.ndarray
    """Mean confidence in each bin, NaN in an empty one."""
    accuracy: np.ndarray
    """Accuracy in each bin, NaN in an empty one."""


@dataclass(frozen=True)
class Interval:
    """A value and its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Analysis:
    """All statistics of a report."""

    intervals: dict[str, Interval]
    """95 % intervals by metric: bootstrap, or exact if all images are right or all wrong."""
    classes: list[ClassScores]
    confused: list[ConfusedPair]
    temperature: float
    before: Calibration
    """Calibration of the probabilities as trained."""
    after: Calibration
    """Calibration after temperature scaling."""

    def metrics(self) -> dict[str, float]:
        """As they are logged: `top1_low`, `top1_high`, …, `ece`, `ece_scaled` and `temperature`."""
        return {
            **{f"{name}_low": interval.low for name, interval in self.intervals.items()},
            **{f"{name}_high": interval.high for name, interval in self.intervals.items()},
            "ece": self.before.ece,
            "ece_scaled": self.after.ece,
            "temperature": self.temperature,
        }


def analyze(predictions: Predictions, val: Predictions) -> Analysis:
    """Compute all statistics of a report.

    Args:
        predictions: Of the split that is reported.
        val: Of the validation split; the temperature is fitted on it.
    """
    temperature = fit_temperature(val.logits, val.labels)
    return Analysis(
        intervals=bootstrap(predictions),
        classes=class_scores(predictions),
        confused=confused_pairs(predictions),
        temperature=temperature,
        before=calibration(predictions.probabilities, predictions.labels),
        after=calibration(TASK.activation(predictions.logits / temperature), predictions.labels),
    )


def class_scores(predictions: Predictions) -> list[ClassScores]:
    """Precision, recall and F1 of each class, in the order of the classes.

    Precision is NaN for a class that was never predicted; recall and F1 are NaN for a class without images.
    """
    from sklearn.metrics import precision_recall_fscore_support

    classes = predictions.classes
    predicted = np.where(predictions.finite, predictions.predicted, -1)
    precision, recall, f1, support = precision_recall_fscore_support(
        predictions.labels, predicted, labels=range(len(classes)), zero_division=np.nan
    )
    counts = np.bincount(predicted[predicted >= 0], minlength=len(classes))
    return [
        ClassScores(
            name,
            float(precision[index]),
            float(recall[index]),
            float(f1[index]) if support[index] else math.nan,
            int(support[index]),
            int(counts[index]),
        )
        for index, name in enumerate(classes)
    ]


def confusion(predictions: Predictions) -> np.ndarray:
    """Images by true class (rows) and predicted class (columns), int64; without images that have no prediction."""
    classes = len(predictions.classes)
    cells = (predictions.labels * classes + predictions.predicted)[predictions.finite]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def confused_pairs(predictions: Predictions) -> list[ConfusedPair]:
    """The confused pairs of classes, most frequent first, equally frequent ones by name."""
    counts = confusion(predictions)
    np.fill_diagonal(counts, 0)
    support = np.bincount(predictions.labels, minlength=len(predictions.classes))
    pairs = [
        ConfusedPair(
            predictions.classes[true],
            predictions.classes[predicted],
            int(counts[true, predicted]),
            float(counts[true, predicted] / support[true]),
        )
        for true, predicted in np.argwhere(counts)
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, pair.true, pair.predicted))


def topk_accuracy(predictions: Predictions, most: int = 20) -> np.ndarray:
    """Top-k accuracy for k = 1, 2, … up to `most` or the number of classes."""
    ks = np.arange(1, min(most, len(predictions.classes)) + 1)
    return (predictions.ranks[:, None] < ks).mean(axis=0)


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """Confidence against accuracy in bins of equal width; NaN without images.

    The expected calibration error is the mean over bins of |accuracy - confidence|, weighted by images; the maximum
    calibration error is the largest of these. C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017,
    equations 3 and 5.

    Args:
        probabilities: n × classes; rows with a NaN are left out.
        labels: The n true class indices.
        bins: Number of bins.
    """
    known = ~np.isnan(probabilities).any(axis=1)
    probabilities, labels = probabilities[known], labels[known]
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    # side="left": a confidence equal to an edge belongs to the bin below. Rounding can bring a probability above 1.
    bin_of = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(bin_of, minlength=bins)
    divisor = np.maximum(count, 1)
    mean = np.where(count, np.bincount(bin_of, confidence, bins) / divisor, np.nan)
    accuracy = np.where(count, np.bincount(bin_of, correct, bins) / divisor, np.nan)
    if not len(labels):
        return Calibration(math.nan, math.nan, edges, count, mean, accuracy)
    gaps = np.abs(accuracy - mean)[count > 0]
    shares = count[count > 0] / len(labels)
    return Calibration(float((shares * gaps).sum()), float(gaps.max()), edges, count, mean, accuracy)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in `TEMPERATURES` that minimizes the mean negative log likelihood of softmax(logits / T).

    Fit it on the validation split, never on the split that is reported (Guo et al. 2017, section 4.2). The likelihood
    is convex in 1 / T, so there is one minimum. If every image is correct by far there is none, and the result is the
    lower bound. Without a finite row the result is 1.

    Args:
        logits: n × classes; rows that are not finite are left out.
        labels: The n true class indices.
    """
    from scipy.optimize import minimize_scalar

    known = np.isfinite(logits).all(axis=1)
    if not known.any():
        return 1.0
    below = logits[known] - logits[known].max(axis=1, keepdims=True)
    true = np.take_along_axis(below, labels[known][:, None], axis=1)[:, 0]

    def loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        return float((np.log(np.exp(below * inverse).sum(axis=1)) - true * inverse).mean())

    low, high = map(math.log, TEMPERATURES)
    optimum = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    # The bounded method never tries the bounds themselves, and stops anywhere once all losses are 0.
    return math.exp(min((low, float(optimum.x), high), key=loss))


def bootstrap(
    predictions: Predictions, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> dict[str, Interval]:
    """`bootstrap_ranks` of predictions."""
    labels, ranks, classes = predictions.labels, predictions.ranks, len(predictions.classes)
    return bootstrap_ranks(labels, ranks, classes, resamples, seed, confidence)


def bootstrap_ranks(
    labels: np.ndarray,
    ranks: np.ndarray,
    classes: int,
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, Interval]:
    """Percentile bootstrap intervals over images, for the metrics that define `Metric.resampled`.

    They describe how a metric varies with the drawing of test images, not from one training to another. A resample's
    balanced accuracy leaves out classes without images in it. B. Efron, Bootstrap methods: another look at the
    jackknife, Annals of Statistics 1979. Where all images are right, or all wrong, all resamples are equal: shares then
    have their `exact_interval`.

    Args:
        labels: The n true class indices.
        ranks: The rank of the true class of each image, from 0.
        classes: Number of classes.
        resamples: Number of resamples.
        seed: Seed of the resampling; the same seed gives the same intervals.
        confidence: Confidence level of the intervals.
    """
    # These metrics depend on how many images of a class have rank 0, 1 to 4, or more. Drawing n images with
    # replacement draws these counts from a multinomial distribution, at a cost that does not grow with the images.
    level = np.where(ranks == 0, 0, np.where(ranks < TOP_K, 1, 2))
    observed = np.bincount(labels * 3 + level, minlength=3 * classes)
    filled = np.flatnonzero(observed)  # the last cell absorbs rounding errors, so it must not be an empty one
    images = len(labels)
    drawn = np.zeros((resamples, 3 * classes), dtype=np.int64)
    drawn[:, filled] = np.random.default_rng(seed).multinomial(images, observed[filled] / images, resamples)
    bounds = [(1 - confidence) / 2, (1 + confidence) / 2]
    intervals = {}
    for name, metric in METRICS.items():
        if metric.resampled is not None:
            value = float(metric.resampled(observed.reshape(1, classes, 3))[0])
            if metric.share_of and value in (0, 1) and classes >= metric.min_classes:
                counted = _equally_counted(labels) if metric.share_of == "classes" else images
                intervals[name] = exact_interval(round(value * counted), counted, confidence)
                continue
            samples = metric.resampled(drawn.reshape(resamples, classes, 3))
            intervals[name] = Interval(value, *np.quantile(samples, bounds).tolist())
    return intervals


def exact_interval(hits: int, images: int, confidence: float = 0.95) -> Interval:
    """The share of hits and its Clopper-Pearson interval.

    C. J. Clopper and E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial,
    Biometrika 1934.
    """
    from scipy.stats import binomtest

    limits = binomtest(hits, images).proportion_ci(confidence, method="exact")
    return Interval(hits / images, float(limits.low), float(limits.high))


def _equally_counted(labels: np.ndarray) -> int:
    """Images that count for the exact interval of the mean of classes' shares: as many of each as the rarest has.

    With m images or more of each of C classes, and true shares p, all images are right with a probability of at most
    (Π p)^m ≤ (mean p)^(C·m), as geometric means are not above arithmetic ones. So the interval of C·m images holds for
    the mean of the shares; it is exact for classes of equal size, and wider than needed for others.
    """
    support = np.bincount(labels)
    support = support[support > 0]
    return int(len(support) * support.min())


def most_confident_errors(predictions: Predictions, most: int) -> list[int]:
    """Indices of the errors with the highest confidence, highest first, equal ones by path."""
    confidence = np.nan_to_num(predictions.confidence, nan=-1.0)
    wrong = np.flatnonzero(~predictions.correct).tolist()
    return sorted(wrong, key=lambda index: (-confidence[index], predictions.paths[index]))[:most]


def least_confident_correct(predictions: Predictions, most: int) -> list[int]:
    """Indices of the correct predictions with the lowest confidence, lowest first, equal ones by path."""
    correct = np.flatnonzero(predictions.correct).tolist()
    return sorted(correct, key=lambda index: (predictions.confidence[index], predictions.paths[index]))[:most]
