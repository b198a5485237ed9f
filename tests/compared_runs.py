"""Runs to compare, for tests."""

from __future__ import annotations

from typing import Any

from runner.config.identity import Identity
from runner.evaluation.comparison.comparison import ComparedRun


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
