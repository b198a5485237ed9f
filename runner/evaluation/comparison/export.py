"""A comparison as CSV and as JSON, with all digits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runner.evaluation.comparison.comparison import (
    ComparedRun,
    Comparison,
    MetricRow,
    PairedTest,
    differing_settings,
)
from runner.utils.csv_text import to_csv


def settings_to_csv(runs: Sequence[ComparedRun]) -> str:
    """All settings, one column per run, and whether they differ."""
    differing = differing_settings(runs)
    names = sorted({name for run in runs for name in run.settings})
    rows = [
        (name, "yes" if name in differing else "no", *(run.settings.get(name, "") for run in runs))
        for name in names
    ]
    return to_csv(("setting", "differs", *(run.run_id for run in runs)), rows)


def metrics_to_csv(runs: Sequence[ComparedRun], metrics: Sequence[MetricRow]) -> str:
    """All metrics, one column per run."""
    rows = [(row.name, *("" if value is None else repr(value) for value in row.values)) for row in metrics]
    return to_csv(("metric", *(run.run_id for run in runs)), rows)


def to_json(comparison: Comparison, folder: Path, artifacts: str | None) -> dict[str, Any]:
    """The comparison as JSON values; numbers that are not finite are null.

    Args:
        comparison: What to convert.
        folder: Where its files are.
        artifacts: Where they are in the reference run in MLflow; None: nowhere.
    """
    runs = comparison.runs
    ids = [run.run_id for run in runs]
    differing = differing_settings(runs)
    return {
        "runs": [
            {
                "run": run.run_id,
                "name": run.name,
                "experiment": run.experiment,
                "status": run.status,
                "began": run.began,
                "seconds": run.seconds,
                "epochs": run.epochs,
            }
            for run in runs
        ],
        "settings": {
            "differing": {name: dict(zip(ids, values, strict=True)) for name, values in differing.items()},
            "same": len({name for run in runs for name in run.settings}) - len(differing),
        },
        "metrics": {
            row.name: {
                "values": dict(zip(ids, map(_finite, row.values), strict=True)),
                "best": [ids[index] for index in sorted(row.best)],
            }
            for row in comparison.metrics
        },
        "paired": [_test_to_json(ids[0], test) for test in comparison.tests],
        "notes": list(comparison.notes),
        "folder": str(folder),
        "artifacts": artifacts,
    }


def _test_to_json(reference: str, test: PairedTest) -> dict[str, Any]:
    pair = {"run": test.run.run_id, "reference": reference}
    result = test.result
    if result is None:
        return {**pair, "problem": test.problem}
    return {
        **pair,
        "images": result.images,
        "left_out": result.left_out,
        "only_reference": result.only_first,
        "only_run": result.only_second,
        "difference": result.difference,
        "interval": result.interval,
        "p": result.p,
        "p_holm": test.p,
        "significant": test.significant,
        "classes": [
            {"class": row.name, "only_reference": row.only_first, "only_run": row.only_second}
            for row in result.classes
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
