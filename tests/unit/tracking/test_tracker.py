"""The interface that a tracker for another service implements."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from helpers import Recorder

from runner.tracking.mlflow_tracker import MlflowTracker
from runner.tracking.model_registry import ModelInfo
from runner.tracking.tracker import Tracker

METHODS = [name for name, _ in inspect.getmembers(Tracker, inspect.isfunction) if not name.startswith("_")]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("kind", [MlflowTracker, Recorder])
def test_trackers_have_the_same_methods(kind: type[Tracker], name: str) -> None:
    """Training may call any tracker alike."""
    expected, found = (list(inspect.signature(getattr(each, name)).parameters) for each in (Tracker, kind))
    assert found == expected


def test_the_mlflow_tracker_implements_all_of_them() -> None:
    assert [name for name in METHODS if name not in vars(MlflowTracker)] == []


def test_a_plain_tracker_logs_nothing(tmp_path: Path) -> None:
    tracker = Tracker()
    tracker.log_metrics({"loss": float("nan")}, 1)
    tracker.log_params({"a": 1})
    tracker.set_tags({"a": "b"})
    tracker.log_text("a.txt", "a")
    tracker.log_artifact(tmp_path / "missing")
    tracker.log_dataset("name", "digest", "source", "{}", "train")
    tracker.log_model(tmp_path / "missing", ModelInfo("name", {}, "top1", "manifest", 1))
    assert not tracker.has_logged("artifact")
    assert tracker.delivered
    assert tracker.run_id == ""
