"""The evaluation report: statistics, plots, galleries and an HTML page, stored with its run in MLflow."""

from __future__ import annotations

import math
import shutil
import tempfile
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
class ReportRequest:
    """The run that is reported, the optional parts of the report, and where it is stored."""

    client: MlflowClient
    run: RunInfo
    faithfulness: int
    """Number of images for ROAD scores; 0: none."""
    boxes: Path | None
    """CSV file with bounding boxes, for pointing scores."""
    out: Path | None
    """Folder for a copy of the report."""
    fallback: Path
    """Folder for a report that MLflow does not accept, without `out`."""


def write_report(
    evaluation: CheckpointEvaluation, val: Predictions, request: ReportRequest, terminal: Terminal
) -> str:
    """Write a report and store it in MLflow, with its metrics as `evaluation/<split>/<name>`.

    Args:
        evaluation: The checkpoint that is reported, with its predictions.
        val: Its predictions on the validation split; the temperature is fitted on them.
        request: Optional parts and destination.
        terminal: For progress, and a warning if MLflow does not accept the report.

    Returns:
        Where the report is, for a message.

    Raises:
        UserError: The bounding boxes do not fit.
    """
    artifacts = f"evaluation/{evaluation.split}"
    with tempfile.TemporaryDirectory(prefix="runner-") as temporary:
        folder = Path(temporary) / "report"  # not the temporary folder, which only its owner may read
        metrics = _write_files(evaluation, val, request, folder, terminal)
        saved = request.out
        if saved is not None:
            shutil.copytree(folder, saved, dirs_exist_ok=True)
        try:
            _log(folder, artifacts, metrics, request)
        except Exception as error:  # every artifact store raises its own errors; the report must not be lost
            terminal.warn(f"MLflow did not accept the report ({one_line(str(error), 200)})")
            if saved is None:
                saved = output_folder(request.fallback)
                shutil.copytree(folder, saved, dirs_exist_ok=True)
    if saved is not None:
        return str(saved / "report.html")
    return f"in MLflow: run {request.run.run_id[:8]}, artifact {artifacts}/report.html"


def _write_files(
    evaluation: CheckpointEvaluation,
    val: Predictions,
    request: ReportRequest,
    folder: Path,
    terminal: Terminal,
) -> dict[str, float]:
    """Write report.html with its tables and pictures to a new folder; returns the measured metrics by name."""
    run, predictions = request.run, evaluation.predictions
    boxes = read_boxes(request.boxes, evaluation, terminal) if request.boxes else {}
    folder.mkdir(parents=True)
    write_text(folder / "predictions.csv", predictions.to_csv())
    errors = statistics.most_confident_errors(predictions, GALLERY_SIZE)
    unsure = statistics.least_confident_correct(predictions, GALLERY_SIZE)
    galleries = {
        "Most confident errors": _draw_gallery(evaluation, errors, folder, terminal),
        "Least confident correct predictions": _draw_gallery(evaluation, unsure, folder, terminal),
    }
    checks: list[CheckResult] = []
    if request.faithfulness:
        checks.append(check_faithfulness(evaluation, request.faithfulness, terminal))
    if boxes:
        checks.append(check_pointing(evaluation, boxes, terminal))
    for check in checks:
        terminal.key_values(check.heading, check.rows)
    analysis = statistics.analyze(predictions, val)
    content = ReportContent(
        title=f"{evaluation.experiment.name}, run {run.run_id[:8]}: {evaluation.split} split",
        subtitle=f"Run {run.run_id} ({run.name}), {evaluation.checkpoint} checkpoint, epoch {evaluation.epoch}.",
        predictions=predictions,
        val=val,
        analysis=analysis,
        galleries=galleries,
        checks=checks,
    )
    write_page(content, folder)
    checked = {name: value for check in checks for name, value in check.metrics.items()}
    return checked | analysis.metrics()


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


def _log(folder: Path, artifacts: str, metrics: Mapping[str, float], request: ReportRequest) -> None:
    from mlflow.entities import Metric

    request.client.log_artifacts(request.run.run_id, str(folder), artifacts)
    time = now_ms()
    points = [
        Metric(f"{artifacts}/{name}", float(value), time, 0)
        for name, value in metrics.items()
        if math.isfinite(value)  # MLflow would store another number
    ]
    request.client.log_batch(request.run.run_id, points)
