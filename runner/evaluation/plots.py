"""Plots of an evaluation, legible from two to several hundred classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.evaluation.predictions import Predictions
from runner.evaluation.statistics import Calibration, ClassScores, confusion
from runner.utils.figures import BLUE, GRAY, ORANGE, new_figure, save_figure
from runner.utils.text import one_line

CLASS_SIZE = 0.2
"""Inches per class, enough for a name in 10 points."""
FEW_CLASSES = 20
"""Up to this number of classes, a confusion matrix has large cells."""
LETTER_WIDTH = 0.085
"""Inches per letter of such a name."""
MOST_INCHES = 40.0
"""Maximum width and height of a plot. With more classes, some names are left out."""
MOST_LETTERS = 28
"""Maximum length of a class name."""
MOST_NUMBERED = 120
"""The cells of a confusion matrix show their counts up to this number of classes."""
FEW_IMAGES = 10
"""Bins with fewer images have hollow markers: their accuracy is mostly chance."""
MOST_BARS = 190
"""Maximum number of bars. With more classes, those with the lowest recall are shown."""


@dataclass(frozen=True)
class _MatrixLayout:
    """Sizes of a confusion matrix, from the number of its classes and the length of their names."""

    classes: int
    side: float
    """Of the matrix, in inches."""
    indices: np.ndarray
    """Of the classes whose names are written."""
    names: list[str]

    @classmethod
    def of(cls, classes: Sequence[str]) -> _MatrixLayout:
        count = len(classes)
        inches = count * (CLASS_SIZE if count > FEW_CLASSES else 0.45)
        side = max(3.5, min(inches, MOST_INCHES - 6))
        step = math.ceil(inches / side)
        names = [one_line(name, MOST_LETTERS) for name in classes[::step]]
        return cls(count, side, np.arange(0, count, step), names)

    @property
    def both_sides(self) -> bool:
        """Whether names are on both sides, because the distance from a cell to them is large."""
        return self.classes > 40

    @property
    def figure_size(self) -> tuple[float, float]:
        """Width and height in inches."""
        margin = LETTER_WIDTH * max(map(len, self.names)) * (2 if self.both_sides else 1)
        return self.side + margin + 2.2, self.side + margin + 1.2

    @property
    def slanted(self) -> bool:
        """Whether the names of columns do not fit horizontally."""
        return self.classes > 4 or max(map(len, self.names)) > 10

    @property
    def label_size(self) -> int:
        """Of axis labels, in points."""
        return 16 if self.both_sides else 11


def confusion_matrix(predictions: Predictions, path: Path) -> None:
    """Draw the predicted classes of each true class, as shares of its images, with counts in the cells.

    Args:
        predictions: Of the split.
        path: PNG file to write.
    """
    counts = confusion(predictions)
    support = np.bincount(predictions.labels, minlength=len(predictions.classes))
    shares = 100 * counts / np.maximum(support, 1)[:, None]
    layout = _MatrixLayout.of(predictions.classes)
    figure = new_figure(*layout.figure_size)
    axes = figure.subplots()
    _draw_shares(axes, shares, layout)
    if layout.classes <= MOST_NUMBERED:
        for true, predicted in np.argwhere(counts):
            axes.text(
                predicted,
                true,
                str(counts[true, predicted]),
                ha="center",
                va="center",
                fontsize=10 if layout.classes <= FEW_CLASSES else 7,
                color="white" if shares[true, predicted] > 30 else "black",
                in_layout=False,
            )
    _label_classes(axes, layout)
    axes.set_xlabel("predicted class", fontsize=layout.label_size)
    axes.set_ylabel("true class", fontsize=layout.label_size)
    correct = int(np.trace(counts))
    axes.set_title(f"{correct:,} of {len(predictions.paths):,} images correct", fontsize=layout.label_size)
    save_figure(figure, path)


def _draw_shares(axes: Any, shares: np.ndarray, layout: _MatrixLayout) -> None:
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.ticker import PercentFormatter

    # The first fifth of Blues looks white, which is for pairs that were never confused.
    blues = LinearSegmentedColormap.from_list("", matplotlib.colormaps["Blues"](np.linspace(0.2, 1, 256)))
    norm = PowerNorm(0.5, 0, 100)  # the square root shows one image in a hundred next to the diagonal
    image = axes.imshow(
        np.ma.masked_equal(shares, 0), cmap=blues, norm=norm, interpolation="nearest", aspect="auto"
    )  # the size of the figure makes cells about square: constrained layout clips axes of a fixed aspect
    bar = axes.figure.colorbar(
        image, ax=axes, shrink=0.6, aspect=30, pad=0.01, format=PercentFormatter(decimals=0, symbol=" %")
    )
    bar.set_label("share of the true class's images (√ scale)", fontsize=layout.label_size)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 75, 100])


def _label_classes(axes: Any, layout: _MatrixLayout) -> None:
    if layout.classes > FEW_CLASSES:
        turn: dict[str, Any] = {"rotation": 90}
    elif layout.slanted:
        turn = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    else:
        turn = {}
    axes.set_xticks(layout.indices, layout.names, parse_math=False, **turn)
    axes.set_yticks(layout.indices, layout.names, parse_math=False)
    if layout.both_sides:
        axes.tick_params(top=True, labeltop=True, right=True, labelright=True)
        for tick in axes.xaxis.get_major_ticks():
            tick.label2.set(parse_math=False, rotation=90)
        for tick in axes.yaxis.get_major_ticks():
            tick.label2.set_parse_math(False)
    edges = np.arange(layout.classes - 1) + 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.tick_params(which="minor", length=0)
    if layout.classes <= MOST_NUMBERED:
        axes.grid(which="minor", color="0.9", linewidth=0.5)


def reliability(before: Calibration, after: Calibration, temperature: float | None, path: Path) -> None:
    """Draw accuracy over confidence before and after temperature scaling, and the images of each bin below.

    Args:
        before: Calibration of the probabilities as trained.
        after: Calibration at `temperature`.
        temperature: Divisor of the logits; None: not determined.
        path: PNG file to write.
    """
    figure = new_figure(7.5, 7.5)
    axes, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 100], [0, 100], color=GRAY, linestyle="--", label="perfectly calibrated")
    divisor = "not determined" if temperature is None else f"{temperature:.2f}"
    series = [(before, ORANGE, "o", "as trained"), (after, BLUE, "s", f"temperature {divisor}")]
    for index, (measured, color, marker, name) in enumerate(series):
        filled, few = measured.count > 0, (measured.count > 0) & (measured.count < FEW_IMAGES)
        confidence, accuracy = 100 * measured.confidence, 100 * measured.accuracy
        style = {"color": color, "marker": marker, "markersize": 6}
        label = f"{name}: ECE {100 * measured.ece:.1f} %"
        axes.plot(confidence[filled], accuracy[filled], **style, linewidth=1.2, label=label)
        axes.plot(confidence[few], accuracy[few], **style, markerfacecolor="white", linestyle="none")
        width = 100 / len(measured.count)
        left = 100 * measured.edges[:-1]
        histogram.bar(left + width * (0.28 + 0.44 * index), measured.count, width=0.42 * width, color=color)
    hollow = {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    axes.plot([], [], **hollow, label=f"fewer than {FEW_IMAGES} images")
    axes.set(title="Accuracy by confidence", ylabel="accuracy (%)", xlim=(0, 102), ylim=(-2, 102))
    figure.legend(loc="outside lower center", ncols=2)
    axes.grid(alpha=0.3)
    histogram.set(xlabel="confidence: probability of the predicted class (%)", ylabel="images")
    if before.count.any():
        histogram.set_yscale("log")  # most predictions are confident; a linear scale would hide the others
        histogram.set_ylim(bottom=0.7)
    histogram.yaxis.set_major_formatter("{x:,.0f}")
    histogram.grid(alpha=0.3)
    save_figure(figure, path)


def topk_curve(curve: np.ndarray, path: Path) -> None:
    """Draw top-k accuracy over k.

    Args:
        curve: Accuracy for k = 1, 2, …, between 0 and 1.
        path: PNG file to write.
    """
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(7.5, 4.5)
    axes = figure.subplots()
    axes.plot(np.arange(1, len(curve) + 1), 100 * curve, color=BLUE, marker="o", markersize=5)
    for k in sorted({1, min(5, len(curve))}):
        share = 100 * curve[k - 1]
        axes.annotate(f"top-{k}: {share:.1f} %", (k, share), xytext=(8, -14), textcoords="offset points")
    span = max(100 * (1 - float(curve.min())), 1.0)
    axes.set(xlim=(0.5, len(curve) + 0.9), ylim=(100 - 1.15 * span, 100 + 0.05 * span))
    axes.set(title="Top-k accuracy", xlabel="k (most probable classes)", ylabel="images (%)")
    axes.xaxis.set_major_locator(MaxNLocator(min(len(curve), 25) + 1, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def recall_by_class(classes: Sequence[ClassScores], path: Path) -> None:
    """Draw each class's recall as a bar and its precision as a marker, the lowest recall on top.

    Args:
        classes: All classes. Those without images come last and have no bar.
        path: PNG file to write.
    """
    ordered = by_recall(classes)
    shown = ordered[:MOST_BARS]
    figure = new_figure(9, max(2.6, 1.4 + CLASS_SIZE * len(shown)))
    axes = figure.subplots()
    rows = np.arange(len(shown))
    recalls = np.nan_to_num([100 * scores.recall for scores in shown])
    bars = axes.barh(rows, recalls, height=0.75, color=BLUE, alpha=0.75, label="recall")
    markers = axes.plot(
        [100 * scores.precision for scores in shown],
        rows,
        linestyle="none",
        marker="D",
        markersize=5,
        color=ORANGE,
        markeredgecolor="white",
        markeredgewidth=0.6,
        clip_on=False,  # half of a marker at 100 %
        zorder=3,
        label="precision",
    )
    mean = 100 * float(np.mean([scores.recall for scores in classes if scores.support]))
    line = axes.axvline(mean, color="black", linestyle="--", linewidth=1, label=f"mean recall {mean:.1f} %")
    axes.set_yticks(
        rows, [one_line(scores.name, MOST_LETTERS) for scores in shown], parse_math=False, fontsize=8
    )
    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.4, -0.6), xlabel="recall and precision (%)", ylabel="class")
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(rows, [f"{scores.support:,}" for scores in shown], fontsize=8)
    counts.tick_params(length=0, pad=8)
    counts.set_ylabel("images of the class")
    if len(shown) < len(ordered):
        axes.set_title(f"The {len(shown)} of {len(ordered):,} classes with the lowest recall")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(handles=[bars, *markers, line], loc="outside upper center", ncols=3)
    save_figure(figure, path)


def by_recall(classes: Sequence[ClassScores]) -> list[ClassScores]:
    """Classes sorted by recall, lowest first, then by name; classes without images last."""
    return sorted(
        classes, key=lambda scores: (not scores.support, scores.recall if scores.support else 0, scores.name)
    )
