"""Pictures of what a network's answers tell, legible from two classes to some hundred."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runner.evaluation.predictions import Predictions
from runner.evaluation.statistics import Calibration, ClassReport, confusion
from runner.utils.atomic_files import atomic_write
from runner.utils.plot_style import BLUE, GRAY, ORANGE

CELL = 0.2
"""Inches for a class: room for a name in 10 points."""
LETTER = 0.085
"""Inches for a letter of such a name."""
LARGEST = 40.0
"""Inches that a picture of classes may be wide or high; of more classes not every name is written."""
LONGEST = 28
"""Characters of a name that are written."""
NUMBERED = 120
"""Up to so many classes the cells of a confusion matrix hold their counts."""
FEW = 10
"""Bins of fewer images are drawn hollow: their accuracy is mostly chance."""
LISTED = 190
"""Up to so many classes are drawn one by one; of more, those with the lowest recall."""


def confusion_matrix(outcomes: Predictions, path: Path) -> None:
    """Draw which class was taken for which, as shares of the true class's images, with counts in the cells.

    Args:
        outcomes: Of the split.
        path: PNG file to write.
    """
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.ticker import PercentFormatter

    counts = confusion(outcomes)
    classes = len(outcomes.classes)
    support = np.bincount(outcomes.labels, minlength=classes)
    shares = 100 * counts / np.maximum(support, 1)[:, None]
    cell = CELL if classes > 20 else 0.45
    side = max(3.5, min(classes * cell, LARGEST - 6))
    step = math.ceil(classes * cell / side)
    places = np.arange(0, classes, step)
    names = [_short(outcomes.classes[place]) for place in places]
    twice = classes > 40  # names on both sides: the way from a cell to them is long
    room = LETTER * max(map(len, names)) * (2 if twice else 1)
    figure = _figure(side + room + 2.2, side + room + 1.2)
    axes = figure.subplots()
    # The first fifth of Blues cannot be told from white, which is for pairs that were never confused.
    blues = LinearSegmentedColormap.from_list("", matplotlib.colormaps["Blues"](np.linspace(0.2, 1, 256)))
    norm = PowerNorm(0.5, 0, 100)  # the square root shows one image in a hundred beside the diagonal
    image = axes.imshow(
        np.ma.masked_equal(shares, 0), cmap=blues, norm=norm, interpolation="nearest", aspect="auto"
    )  # the figure's size makes the cells about square: constrained layout clips axes of a fixed aspect
    bar = figure.colorbar(
        image, ax=axes, shrink=0.6, aspect=30, pad=0.01, format=PercentFormatter(decimals=0, symbol=" %")
    )
    large = 16 if classes > 40 else 11
    bar.set_label("share of the true class's images (√ scale)", fontsize=large)
    bar.set_ticks([0, 1, 5, 10, 25, 50, 75, 100])
    if classes <= NUMBERED:
        size = 10 if classes <= 20 else 7
        for true, predicted in np.argwhere(counts):
            axes.text(
                predicted,
                true,
                str(counts[true, predicted]),
                ha="center",
                va="center",
                fontsize=size,
                color="white" if shares[true, predicted] > 30 else "black",
                in_layout=False,
            )
    slanted = classes > 4 or max(map(len, names)) > 10
    axes.set_xticks(
        places,
        names,
        parse_math=False,
        rotation=90 if classes > 20 else 45 if slanted else 0,
        ha="right" if slanted and classes <= 20 else "center",
        rotation_mode="anchor" if slanted and classes <= 20 else "default",
    )
    axes.set_yticks(places, names, parse_math=False)
    if twice:
        axes.tick_params(top=True, labeltop=True, right=True, labelright=True)
        for tick in axes.xaxis.get_major_ticks():
            tick.label2.set(parse_math=False, rotation=90)
        for tick in axes.yaxis.get_major_ticks():
            tick.label2.set_parse_math(False)
    edges = np.arange(classes - 1) + 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.tick_params(which="minor", length=0)
    if classes <= NUMBERED:
        axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.set_xlabel("predicted class", fontsize=large)
    axes.set_ylabel("true class", fontsize=large)
    hits = int(np.trace(counts))
    axes.set_title(f"{hits:,} of {len(outcomes.paths):,} images right", fontsize=large)
    _save(figure, path)


def reliability(before: Calibration, after: Calibration, temperature: float, path: Path) -> None:
    """Draw accuracy over confidence before and after temperature scaling, with the images of each bin below.

    Args:
        before: Of the network's own probabilities.
        after: Of those at `temperature`.
        temperature: What the logits were divided by.
        path: PNG file to write.
    """
    figure = _figure(7.5, 7.5)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axes.plot([0, 100], [0, 100], color=GRAY, linestyle="--", label="perfectly calibrated")
    sides = (
        (before, ORANGE, "o", "as trained"),
        (after, BLUE, "s", f"temperature {temperature:.2f}"),
    )
    for side, (measured, colour, marker, name) in enumerate(sides):
        full = [each for each in measured.bins if each.count]
        confidence = [100 * each.confidence for each in full]
        accuracy = [100 * each.accuracy for each in full]
        axes.plot(
            confidence,
            accuracy,
            color=colour,
            marker=marker,
            markersize=6,
            linewidth=1.2,
            label=f"{name}: ECE {100 * measured.ece:.1f} %",
        )
        few = [place for place, each in enumerate(full) if each.count < FEW]
        axes.plot(
            [confidence[place] for place in few],
            [accuracy[place] for place in few],
            color=colour,
            marker=marker,
            markersize=6,
            markerfacecolor="white",
            linestyle="none",
        )
        width = 100 / len(measured.bins)
        below.bar(
            [100 * each.low + width * (0.28 + 0.44 * side) for each in measured.bins],
            [each.count for each in measured.bins],
            width=0.42 * width,
            color=colour,
        )
    hollow = {"color": "black", "marker": "o", "markerfacecolor": "white", "linestyle": "none"}
    axes.plot([], [], **hollow, label=f"under {FEW} images")
    axes.set_title("Is confidence accuracy?")
    axes.set(ylabel="accuracy (%)", xlim=(0, 102), ylim=(-2, 102))
    figure.legend(loc="outside lower center", ncols=2)
    axes.grid(alpha=0.3)
    below.set(xlabel="confidence: probability of the predicted class (%)", ylabel="images")
    if any(each.count for each in before.bins):
        below.set_yscale("log")  # most answers are sure ones: on a linear scale the others cannot be seen
        below.set_ylim(bottom=0.7)
    below.yaxis.set_major_formatter("{x:,.0f}")
    below.grid(alpha=0.3)
    _save(figure, path)


def topk_curve(curve: np.ndarray, path: Path) -> None:
    """Draw how often the true class is among the first k.

    Args:
        curve: Shares for k = 1, 2, …, as `analysis.topk` gives them.
        path: PNG file to write.
    """
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7.5, 4.5)
    axes = figure.subplots()
    places = np.arange(1, len(curve) + 1)
    axes.plot(places, 100 * curve, color=BLUE, marker="o", markersize=5)
    for k in sorted({1, min(5, len(curve))}):
        axes.annotate(
            f"top-{k}: {100 * curve[k - 1]:.1f} %",
            (k, 100 * curve[k - 1]),
            xytext=(8, -14),
            textcoords="offset points",
        )
    axes.set_title("Is the true class among the first k?")
    axes.set(xlabel="k (classes by falling probability)", ylabel="images (%)")
    axes.set_xlim(0.5, len(curve) + 0.9)
    span = max(100 * (1 - float(curve.min())), 1.0)
    axes.set_ylim(100 - 1.15 * span, 100 + 0.05 * span)
    axes.xaxis.set_major_locator(MaxNLocator(min(len(curve), 25) + 1, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    _save(figure, path)


def recall_by_class(reports: Sequence[ClassReport], path: Path) -> None:
    """Draw each class's recall as a bar and its precision as a mark, the lowest recall on top.

    Args:
        reports: Of all classes; those without images come last, and bear no bar.
        path: PNG file to write.
    """
    ordered = by_recall(reports)
    drawn = ordered[:LISTED]
    figure = _figure(9, max(2.6, 1.4 + CELL * len(drawn)))
    axes = figure.subplots()
    rows = np.arange(len(drawn))
    recalls = np.array([100 * each.recall for each in drawn])
    precisions = np.array([100 * each.precision for each in drawn])
    bars = axes.barh(rows, np.nan_to_num(recalls), height=0.75, color=BLUE, alpha=0.75, label="recall")
    marks = axes.plot(
        precisions,
        rows,
        linestyle="none",
        marker="D",
        markersize=5,
        color=ORANGE,
        markeredgecolor="white",
        markeredgewidth=0.6,
        clip_on=False,  # half of a mark at 100 %
        zorder=3,
        label="precision",
    )
    mean = 100 * float(np.mean([each.recall for each in reports if each.support]))
    line = axes.axvline(mean, color="black", linestyle="--", linewidth=1, label=f"mean recall {mean:.1f} %")
    axes.set_yticks(rows, [_short(each.name) for each in drawn], parse_math=False, fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set(xlabel="recall and precision (%)", ylabel="class")
    counts = axes.secondary_yaxis("right")
    counts.set_yticks(rows, [f"{each.support:,}" for each in drawn], fontsize=8)
    counts.tick_params(length=0, pad=8)
    counts.set_ylabel("images of the class")
    if len(drawn) < len(ordered):
        axes.set_title(f"The {len(drawn)} of {len(ordered):,} classes with the lowest recall")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(handles=[bars, *marks, line], loc="outside upper center", ncols=3)
    _save(figure, path)


def by_recall(reports: Sequence[ClassReport]) -> list[ClassReport]:
    """Lowest recall first, then by name; classes without images last."""
    return sorted(reports, key=lambda each: (not each.support, each.recall if each.support else 0, each.name))


def _short(name: str) -> str:
    """A name that can be drawn in one line: a folder's may hold anything, and 255 bytes of it."""
    plain = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in name)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    with warnings.catch_warnings(), atomic_write(path) as aside:
        # A class's name may be in a script that matplotlib's font lacks; boxes are drawn for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(aside, format="png")
