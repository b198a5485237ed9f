"""What a network's answers tell: classes, confusions, calibration, and how certain the scores are.

An image whose logits are not finite got no answer: it is wrong everywhere, predicts no class and has no confidence.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from runner.evaluation.predictions import TOP_K, Predictions

BINS = 15
"""Bins of confidence; that of Guo et al. (2017)."""
TEMPERATURES = (0.05, 20.0)
"""Within these the temperature is looked for."""


@dataclass(frozen=True)
class ClassReport:
    """How a class fares, in fractions 0 to 1; nan where nothing defines them.

    `support` counts its images, `predicted` the images that were taken for it.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int
    predicted: int


@dataclass(frozen=True)
class Confusion:
    """Images of class `true` taken for `predicted`: their number, and their share of the true class's images."""

    true: str
    predicted: str
    count: int
    share: float


@dataclass(frozen=True)
class Bin:
    """Images with a confidence in (low, high]: number, mean confidence and accuracy, nan where there are none."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Whether confidence is accuracy: expected and maximum calibration error, 0 to 1, and the bins."""

    ece: float
    mce: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Interval:
    """A score and its confidence interval."""

    value: float
    low: float
    high: float


def per_class(outcomes: Predictions) -> list[ClassReport]:
    """Precision, recall and F1 of each class, in the order of the classes.

    The precision of a class that was never predicted is nan, as are recall and F1 of one without images.
    """
    from sklearn.metrics import precision_recall_fscore_support

    answers = np.where(outcomes.finite, outcomes.predicted, -1)
    precision, recall, f1, support = precision_recall_fscore_support(
        outcomes.labels, answers, labels=range(len(outcomes.classes)), zero_division=np.nan
    )
    taken = np.bincount(answers[answers >= 0], minlength=len(outcomes.classes))
    return [
        ClassReport(
            name,
            float(precision[place]),
            float(recall[place]),
            float(f1[place]) if support[place] else math.nan,
            int(support[place]),
            int(taken[place]),
        )
        for place, name in enumerate(outcomes.classes)
    ]


def confusion(outcomes: Predictions) -> np.ndarray:
    """Images by true (rows) and predicted class (columns), int64; those without an answer are left out."""
    classes = len(outcomes.classes)
    cells = (outcomes.labels * classes + outcomes.predicted)[outcomes.finite]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def confused(outcomes: Predictions, most: int | None = 20) -> list[Confusion]:
    """The pairs of classes taken for each other, most frequent first, equal ones by name; None: all of them."""
    counts = confusion(outcomes)
    np.fill_diagonal(counts, 0)
    support = np.bincount(outcomes.labels, minlength=len(outcomes.classes))
    pairs = [
        Confusion(
            outcomes.classes[true],
            outcomes.classes[predicted],
            int(counts[true, predicted]),
            float(counts[true, predicted] / support[true]),
        )
        for true, predicted in np.argwhere(counts)
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, pair.true, pair.predicted))[:most]


def topk(outcomes: Predictions, most: int = 20) -> np.ndarray:
    """Share of images whose true class is among the first k, for k = 1 … `most` or the number of classes."""
    upto = np.arange(1, min(most, len(outcomes.classes)) + 1)
    return (outcomes.ranks[:, None] < upto).mean(axis=0)


def calibration(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Calibration:
    """Confidence against accuracy in bins of equal width; of no image at all, nan.

    The expected calibration error is the mean over bins of |accuracy - confidence|, weighted by images, the maximum
    one the largest: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equations 3 and 5.

    Args:
        probabilities: n × classes; rows with a nan are left out.
        labels: The n true class indices.
        bins: Their number.
    """
    known = ~np.isnan(probabilities).any(axis=1)
    probabilities, labels = probabilities[known], labels[known]
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    # side="left": what equals an edge belongs to the bin below it. Rounding can bring a probability above 1.
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(places, minlength=bins)
    full = np.maximum(count, 1)
    mean = np.where(count, np.bincount(places, confidence, bins) / full, np.nan)
    accuracy = np.where(count, np.bincount(places, right, bins) / full, np.nan)
    gaps = np.abs(accuracy - mean)[count > 0]
    shares = count[count > 0] / max(len(labels), 1)
    return Calibration(
        ece=float((shares * gaps).sum()) if len(labels) else math.nan,
        mce=float(gaps.max()) if len(labels) else math.nan,
        bins=tuple(
            Bin(float(edges[place]), float(edges[place + 1]), int(count[place]), *pair)
            for place, pair in enumerate(zip(mean.tolist(), accuracy.tolist(), strict=True))
        ),
    )


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The T in `TEMPERATURES` for which softmax(logits / T) has the smallest mean negative log likelihood.

    To be found on the validation split, never on the one that is judged (Guo et al. 2017, section 4.2). The
    likelihood is convex in 1 / T, so that it has one minimum; where every image is right by far it has none, and the
    lower bound comes out. 1 where no row is finite.

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
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    # The bounded method never tries the bounds themselves, and stops anywhere where all losses have become 0.
    return math.exp(min((low, float(found.x), high), key=loss))


def bootstrap(
    outcomes: Predictions, resamples: int = 2000, seed: int = 0, confidence: float = 0.95
) -> dict[str, Interval]:
    """`top1`, `top5` and `balanced_accuracy` with percentile bootstrap intervals over images.

    What differs from one drawing of test images to another, not from one training to another. Classes that a resample
    has no image of do not enter its balanced accuracy. See B. Efron, Bootstrap methods: another look at the jackknife,
    Annals of Statistics 1979.

    Args:
        outcomes: Of the split.
        resamples: Their number.
        seed: Of the resampling; the same seed gives the same intervals.
        confidence: Of the intervals.
    """
    # The scores hang on how many images of a class have rank 0, 1 to 4, or more. Drawing n images with replacement
    # draws these counts from a multinomial distribution, at a cost that does not grow with the images.
    classes = len(outcomes.classes)
    level = np.where(outcomes.right, 0, np.where(outcomes.ranks < TOP_K, 1, 2))
    observed = np.bincount(outcomes.labels * 3 + level, minlength=3 * classes)
    filled = np.flatnonzero(
        observed
    )  # the last cell takes what rounding leaves over: it must not be an empty one
    images = len(outcomes.paths)
    drawn = np.zeros((resamples, 3 * classes), dtype=np.int64)
    drawn[:, filled] = np.random.default_rng(seed).multinomial(images, observed[filled] / images, resamples)
    values, samples = _scores(observed[None]), _scores(drawn)
    bounds = [(1 - confidence) / 2, (1 + confidence) / 2]
    return {
        name: Interval(float(values[name][0]), *np.quantile(samples[name], bounds).tolist())
        for name in values
    }


def _scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of resamples from their images: resamples × (3 · class + level)."""
    cells = counts.reshape(len(counts), -1, 3)
    support = cells.sum(axis=2)
    shares = cells[:, :, 0] / np.maximum(support, 1)
    images = support.sum(axis=1)
    return {
        "top1": cells[:, :, 0].sum(axis=1) / images,
        "top5": cells[:, :, :2].sum(axis=(1, 2)) / images,
        "balanced_accuracy": shares.sum(axis=1) / (support > 0).sum(axis=1),
    }


def most_confident_errors(outcomes: Predictions, most: int) -> list[int]:
    """Places of the errors that the network was surest of, surest first, equal ones by path."""
    confidence = np.nan_to_num(outcomes.confidence, nan=-1.0)
    places = np.flatnonzero(~outcomes.right).tolist()
    return sorted(places, key=lambda place: (-confidence[place], outcomes.paths[place]))[:most]


def least_confident_correct(outcomes: Predictions, most: int) -> list[int]:
    """Places of the right answers that the network was least sure of, least sure first, equal ones by path."""
    places = np.flatnonzero(outcomes.right).tolist()
    return sorted(places, key=lambda place: (outcomes.confidence[place], outcomes.paths[place]))[:most]
