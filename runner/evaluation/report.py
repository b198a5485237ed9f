"""The evaluation report: statistics, plots, galleries and an HTML page, stored with its run in MLflow."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runner.evaluation import statistics
from runner.evaluation.checkpoint_evaluation import CheckpointEvaluation
from runner.evaluation.explanation_checks import CheckResult, check_faithfulness, check_pointing, read_boxes
from runner.evaluation.predictions import Predictions
from runner.evaluation.report_page import Picture, ReportContent, write_page
from runner.explain import cam, overlay
from runner.tracking.journal import now_ms
from runner.tracking.run_lookup import RunInfo
from runner.utils.atomic_files import output_folder, write_text
from runner.utils.console import Terminal
from runner.utils.text import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

GALLERY_SIZE = 12
"""Maximum number of images in each gallery."""


@dataclass(frozen=True)
class ReportOptions:
    """Optional parts of a report."""

    faithfulness: int = 0
    """Number of images for ROAD scores; 0: none."""
    boxes: Path | None = None
    """CSV file with bounding boxes, for pointing scores."""


def write_report(
    evaluation: CheckpointEvaluation,
    val: Predictions,
    options: ReportOptions,
    run: RunInfo,
    folder: Path,
    terminal: Terminal,
) -> dict[str, float]:
    """Write report.html with its tables and pictures, and return the measured metrics by name.

    Args:
        evaluation: The checkpoint that is reported, with its predictions.
        val: Its predictions on the validation split; the temperature is fitted on them.
        options: Optional parts.
        run: The run that the checkpoint belongs to.
        folder: Folder to create.
        terminal: For progress.

    Raises:
        UserError: The bounding boxes do not fit.
    """
    boxes = read_boxes(options.boxes, evaluation, terminal) if options.boxes else {}
    predictions = evaluation.predictions
    folder.mkdir(parents=True)
    write_text(folder / "predictions.csv", predictions.to_csv())
    errors = statistics.most_confident_errors(predictions, GALLERY_SIZE)
    unsure = statistics.least_confident_correct(predictions, GALLERY_SIZE)
    galleries = {
        "Most confident errors": _draw_gallery(evaluation, errors, folder, terminal),
        "Least confident correct predictions": _draw_gallery(evaluation, unsure, folder, terminal),
    }
    checks: list[CheckResult] = []
    if options.faithfulness:
        checks.append(check_faithfulness(evaluation, options.faithfulness, terminal))
    if boxes:
        checks.append(check_pointing(evaluation, boxes, terminal))
    analysis = statistics.analyze(predictions, val)
    content = ReportContent(
        title=f"{evaluation.experiment.name}, run {run.run_id[:8]}: {evaluation.split} split",
        subtitle=f"Run {run.run_id} ({run.name}), {evaluation.checkpoint} checkpoint, epoch {evaluation.epoch}.",
        predictions=predictions,
        val=val,
        analysis=analysis,
        galleries=galleries,
        checks=tuple(checks),
    )
    write_page(content, folder)
    metrics: dict[str, float] = {}
    for check in checks:
        metrics |= check.metrics
    return metrics | analysis.metrics()


def _draw_gallery(
    evaluation: CheckpointEvaluation, indices: Sequence[int], folder: Path, terminal: Terminal
) -> list[Picture]:
    """Draw images of the split with the Grad-CAM of their predicted class."""
    if not indices:
        return []
    predictions = evaluation.predictions
    images = evaluation.images(indices)
    pictures = []
    with terminal.progress("explain", len(indices)) as advance:
        for number, index in enumerate(indices):
            predicted = int(predictions.predicted[index])
            (heatmap,) = cam.explain(evaluation.network, images[number : number + 1], [predicted])
            name, true = predictions.classes[predicted], predictions.classes[predictions.labels[index]]
            title = overlay.title(name, float(predictions.confidence[index]), true)
            kind = "correct" if predictions.correct[index] else "error"
            path = folder / "galleries" / f"{kind}-{number + 1:02}.png"
            overlay.draw(images[number], heatmap, title, f"Grad-CAM for {name}", path)
            pictures.append((path, f"{title} · {predictions.paths[index]}"))
            advance(1)
    return pictures


@dataclass(frozen=True)
class ReportDestination:
    """Where a report is stored: in MLflow, and in a folder if one was chosen."""

    client: MlflowClient
    run: RunInfo
    out: Path | None
    """The chosen folder."""
    fallback: Path
    """Folder for a report that MLflow does not accept, if none was chosen."""

    def store(self, folder: Path, split: str, metrics: Mapping[str, float], terminal: Terminal) -> str:
        """Store a report and log its metrics.

        Args:
            folder: The report.
            split: The split that it is about.
            metrics: Its metrics, logged as `evaluation/<split>/<name>`.
            terminal: For a warning if MLflow does not accept it.

        Returns:
            Where the report is, for a message.
        """
        if self.out is not None:
            shutil.copytree(folder, self.out, dirs_exist_ok=True)
        try:
            self._log(folder, split, metrics)
        except Exception as error:  # every artifact store raises its own errors; the report must not be lost
            terminal.warn(f"MLflow did not accept the report ({one_line(str(error), 200)})")
            if self.out is None:
                saved = output_folder(self.fallback)
                shutil.copytree(folder, saved, dirs_exist_ok=True)
                return str(saved / "report.html")
        if self.out is not None:
            return str(self.out / "report.html")
        return f"in MLflow: run {self.run.run_id[:8]}, artifact evaluation/{split}/report.html"

    def _log(self, folder: Path, split: str, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        self.client.log_artifacts(self.run.run_id, str(folder), f"evaluation/{split}")
        time = now_ms()
        points = [
            Metric(f"evaluation/{split}/{name}", float(value), time, 0)
            for name, value in metrics.items()
            if math.isfinite(value)  # MLflow would store another number
        ]
        self.client.log_batch(self.run.run_id, points)
