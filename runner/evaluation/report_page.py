"""The HTML page of an evaluation report, with its plots and tables: one file that can be passed on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from runner.evaluation import html, plots
from runner.evaluation.explanation_checks import CheckResult
from runner.evaluation.metrics import shown_metrics
from runner.evaluation.predictions import Predictions
from runner.evaluation.statistics import TEMPERATURES, Analysis, topk_accuracy
from runner.utils.atomic_files import write_text
from runner.utils.csv_text import to_csv

MOST_PAIRS = 20
"""Maximum number of confused pairs on the page; confused.csv has all."""
CLASS_COLUMNS = ("class", "precision", "recall", "f1", "support", "predicted")
"""Header of per_class.csv; one row per `ClassScores`."""
PAIR_COLUMNS = ("true", "predicted", "count", "share")
"""Header of confused.csv; one row per `ConfusedPair`."""

Picture = tuple[Path, str]
"""PNG file and caption."""


@dataclass(frozen=True)
class ReportContent:
    """What the page shows."""

    title: str
    subtitle: str
    predictions: Predictions
    val: Predictions
    """Predictions that the temperature was fitted on."""
    analysis: Analysis
    galleries: Mapping[str, Sequence[Picture]] = field(default_factory=dict)
    """Pictures by heading."""
    checks: Sequence[CheckResult] = ()


def write_page(content: ReportContent, folder: Path) -> None:
    """Write report.html, and the plots and tables that it shows.

    The other files are confusion_matrix.png, reliability.png, topk.png, recall_by_class.png, per_class.csv and
    confused.csv.
    """
    analysis, predictions = content.analysis, content.predictions
    plots.confusion_matrix(predictions, folder / "confusion_matrix.png")
    at_edge = any(math.isclose(analysis.temperature, edge, rel_tol=1e-3) for edge in TEMPERATURES)
    # Without a mistake the likelihood only grows as the temperature falls: the limit of the search says nothing.
    temperature = None if at_edge and content.val.correct.all() else analysis.temperature
    plots.reliability(analysis.before, analysis.after, temperature, folder / "reliability.png")
    plots.topk_curve(topk_accuracy(predictions), folder / "topk.png")
    plots.recall_by_class(analysis.classes, folder / "recall_by_class.png")
    write_text(folder / "per_class.csv", _to_csv(CLASS_COLUMNS, map(astuple, analysis.classes)))
    write_text(folder / "confused.csv", _to_csv(PAIR_COLUMNS, map(astuple, analysis.confused)))
    html.write_page(
        folder / "report.html",
        "report.html.jinja",
        **vars(content),
        folder=folder,
        metrics=shown_metrics(len(predictions.classes)),
        most_pairs=MOST_PAIRS,
        invalid=int((~predictions.finite).sum()),
        classes_by_recall=plots.by_recall(analysis.classes),
        temperatures=TEMPERATURES,
        temperature=temperature,
        temperature_at_edge=at_edge,
    )


def _to_csv(header: Sequence[str], rows: Iterable[tuple[object, ...]]) -> str:
    """A table with six decimals; NaN is empty."""
    return to_csv(header, ([_cell(value) for value in row] for row in rows))


def _cell(value: object) -> object:
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6f}"
