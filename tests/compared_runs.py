"""Runs to compare, for tests."""

from __future__ import annotations

import csv
import io
from typing import Any

from runner.config.identity import Identity
from runner.evaluation.comparison.comparison import ComparedRun
from runner.evaluation.predictions import COLUMNS

IMAGES = 40
"""How many test images a run has."""


def compared_run(run_id: str, **changes: Any) -> ComparedRun:
    """A finished run without settings, metrics and curves, with some fields changed."""
    fields: dict[str, Any] = {
        "name": run_id,
        "experiment": "small",
        "status": "FINISHED",
        "began": 1e9,
        "seconds": 75.0,
        "settings": {},
        "metrics": {},
        "curves": {},
    }
    fields |= changes
    return ComparedRun(run_id=run_id, **{"identity": Identity.of(fields["settings"]), **fields})


def predictions_csv(correct: set[int], images: range, classes: int = 4) -> str:
    """A run's predictions.csv; `correct`: the images that it classified correctly."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for image in images:
        label = f"class {image % classes}"
        predicted, rank = (label, 1) if image in correct else ("other", 4)
        writer.writerow([f"{label}/{image}.png", f"{image:040x}", label, predicted, 0.9, 0.9, rank])
    return text.getvalue()
