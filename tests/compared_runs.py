"""Runs to compare, for tests."""

from __future__ import annotations

from typing import Any

from runner.evaluation.comparison.comparison import ComparedRun


def compared_run(run_id: str, **changes: Any) -> ComparedRun:
    """A finished run without settings, metrics and curves, with some fields changed."""
    fields = {
        "name": run_id,
        "experiment": "small",
        "status": "FINISHED",
        "began": 1e9,
        "seconds": 75.0,
        "manifest": "",
        "settings": {},
        "metrics": {},
        "curves": {},
    }
    return ComparedRun(run_id=run_id, **{**fields, **changes})
