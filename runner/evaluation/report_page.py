"""The HTML page of an evaluation report, with its plots and tables: one file that can be passed on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.evaluation import plots, statistics
from runner.evaluation.explanation_checks import CheckResult
from runner.evaluation.metrics import METRICS
from runner.evaluation.predictions import Predictions
from runner.evaluation.statistics import Analysis, ClassScores, ConfusedPair
from runner.utils.atomic_files import write_text
from runner.utils.csv_text import to_csv
from runner.utils.html import Page

MOST_PAIRS = 20
"""Maximum number of confused pairs on the page; confused.csv has all."""

Picture = tuple[Path, str]
"""PNG file and caption."""


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading."""

    heading: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class ReportContent:
    """What the page shows."""

    title: str
    subtitle: str
    predictions: Predictions
    val: Predictions
    """Predictions that the temperature was fitted on."""
    analysis: Analysis
    galleries: Sequence[Gallery] = ()
    checks: Sequence[CheckResult] = ()


def write_page(content: ReportContent, folder: Path) -> None:
    """Write report.html, and the plots and tables that it shows.

    The other files are confusion_matrix.png, reliability.png, topk.png, recall_by_class.png, per_class.csv and
    confused.csv.
    """
    analysis, predictions = content.analysis, content.predictions
    plots.confusion_matrix(predictions, folder / "confusion_matrix.png")
    plots.reliability(analysis.before, analysis.after, analysis.temperature, folder / "reliability.png")
    plots.topk_curve(statistics.topk_accuracy(predictions), folder / "topk.png")
    plots.recall_by_class(analysis.classes, folder / "recall_by_class.png")
    write_text(folder / "per_class.csv", classes_to_csv(analysis.classes))
    write_text(folder / "confused.csv", pairs_to_csv(analysis.confused))

    page = Page(content.title, content.subtitle)
    _add_scores(page, content)
    for gallery in content.galleries:
        page.heading(gallery.heading)
        page.gallery(gallery.pictures)
    page.heading("Confusion matrix")
    page.text(
        "Rows are true classes and columns predicted classes, in the order of the manifest. Numbers are images."
        " confusion_matrix.png has the full size."
    )
    page.picture(folder / "confusion_matrix.png", "confusion matrix", scroll=True)
    _add_confused_pairs(page, analysis.confused)
    _add_calibration(page, content, folder / "reliability.png")
    page.heading("Top-k accuracy")
    page.picture(folder / "topk.png", "top-k accuracy")
    _add_classes(page, analysis.classes)
    page.picture(folder / "recall_by_class.png", "recall and precision by class")
    for check in content.checks:
        page.heading(check.heading)
        page.table(("", "value"), check.rows)
    page.write(folder / "report.html")


def _add_scores(page: Page, content: ReportContent) -> None:
    analysis, predictions = content.analysis, content.predictions
    rows = [
        [
            METRICS[name].label,
            _percent(interval.value),
            f"{_percent(interval.low)} to {_percent(interval.high)}",
        ]
        for name, interval in analysis.intervals.items()
    ]
    page.table(
        ["", "value", "95 % interval"],
        [
            *rows,
            ["expected calibration error, as trained", _percent(analysis.before.ece), ""],
            ["expected calibration error, after temperature scaling", _percent(analysis.after.ece), ""],
            ["temperature", f"{analysis.temperature:.2f}", ""],
        ],
    )
    page.text(
        f"{len(predictions.paths):,} images of {len(predictions.classes):,} classes. Intervals: percentile bootstrap"
        " over images. They show how much the values depend on the choice of images, not on the training seed."
    )
    if invalid := int((~predictions.finite).sum()):
        page.text(f"The logits of {invalid:,} images are not finite; these images count as wrong.")


def _add_confused_pairs(page: Page, pairs: Sequence[ConfusedPair]) -> None:
    page.heading("Confused classes")
    shown = pairs[:MOST_PAIRS]
    if not shown:
        page.text("None.")
        return
    page.table(
        ["true class", "predicted as", "images", "share of the true class"],
        [[pair.true, pair.predicted, f"{pair.count:,}", _percent(pair.share)] for pair in shown],
    )
    if len(pairs) > len(shown):
        page.text(f"The {len(shown)} most frequent of {len(pairs):,} pairs; confused.csv has all of them.")


def _add_calibration(page: Page, content: ReportContent, picture: Path) -> None:
    analysis, val = content.analysis, content.val
    page.heading("Calibration")
    page.picture(picture, "reliability diagram")
    fitted_on_same = content.predictions.digests == val.digests
    page.text(
        "The expected calibration error is the mean gap between confidence and accuracy in"
        f" {len(analysis.before.bins)} bins of equal width (Guo et al., 2017). The largest gap of a bin is"
        f" {_percent(analysis.before.mce)} as trained and {_percent(analysis.after.mce)} after scaling. The temperature"
        " divides the logits and changes no prediction. "
        + (
            "It was fitted on the same images, so the error after scaling is too optimistic."
            if fitted_on_same
            else f"It was fitted on {len(val.paths):,} validation images."
        )
    )
    low, high = statistics.TEMPERATURES
    if min(abs(analysis.temperature / edge - 1) for edge in (low, high)) < 1e-3:
        page.text(
            f"The temperature is at the edge of the searched range ({low:g} to {high:g}): these images do not"
            " determine it."
        )


def _add_classes(page: Page, classes: Sequence[ClassScores]) -> None:
    page.heading("Classes")
    page.text("Lowest recall first. per_class.csv has the same table.")
    page.table(
        ["class", "recall", "precision", "F1", "images", "predicted"],
        [
            [
                scores.name,
                *map(_percent, (scores.recall, scores.precision, scores.f1)),
                f"{scores.support:,}",
                f"{scores.predicted:,}",
            ]
            for scores in plots.by_recall(classes)
        ],
        scroll=True,
    )


def classes_to_csv(classes: Sequence[ClassScores]) -> str:
    """The scores of all classes as CSV, in their order; undefined scores are empty."""
    return to_csv(
        ("class", "precision", "recall", "f1", "support", "predicted"),
        (
            (
                scores.name,
                *map(_number, (scores.precision, scores.recall, scores.f1)),
                scores.support,
                scores.predicted,
            )
            for scores in classes
        ),
    )


def pairs_to_csv(pairs: Sequence[ConfusedPair]) -> str:
    """Confused pairs of classes as CSV."""
    return to_csv(
        ("true", "predicted", "count", "share"),
        ((pair.true, pair.predicted, pair.count, _number(pair.share)) for pair in pairs),
    )


def _number(share: float) -> str:
    return "" if math.isnan(share) else f"{share:.6f}"


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{100 * share:.1f} %"
