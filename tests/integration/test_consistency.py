"""The consistency check that other tests rely on sees every problem, in files and in the database: it can fail."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from helpers import QUIET
from problems import NAME, PROBLEMS, Problem, Records, healthy_records
from stores import Store

from runner.tracking.model_registry import ModelInfo
from runner.tracking.run_lifecycle import RunRequest, track_run


@pytest.fixture
def records(mlflow_store: Store, tmp_path: Path) -> Records:
    return healthy_records(mlflow_store, tmp_path / "cache")


def test_healthy_records_are_consistent(records: Records) -> None:
    assert records.inconsistencies() == []


@pytest.mark.parametrize("cause", PROBLEMS, ids=lambda cause: cause.__name__)
def test_every_problem_is_seen(records: Records, cause: Problem) -> None:
    cause(records)
    assert records.inconsistencies()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("UPDATE runs SET end_time = start_time - 1", "and ended at"),
        ("UPDATE runs SET end_time = NULL", "and ended at None"),
        ("UPDATE runs SET status = 'RUNNING'", "is RUNNING"),
        (
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"
            " SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics WHERE step = 2",
            "2 points of val/loss at step 2",
        ),
        (
            "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location, creation_timestamp_ms,"
            " last_updated_timestamp_ms, status, lifecycle_stage, model_type, source_run_id) VALUES"
            " ('m', (SELECT MIN(experiment_id) FROM experiments), 'n', 'a', 0, 0, 1, 'active', 'c', 'r')",
            "logged model m is not ready",
        ),
    ],
)
def test_changes_of_the_database_are_seen(records: Records, change: str, expected: str) -> None:
    with closing(sqlite3.connect(records.root / "mlflow.db")) as connection:
        connection.execute(change)
        connection.commit()
    (found,) = records.inconsistencies()
    assert expected in found


def test_two_versions_of_a_run_are_seen(records: Records) -> None:
    records.client.create_registered_model(NAME)
    for _ in range(2):
        records.client.create_model_version(NAME, str(records.root), records.run_id)
    (found,) = records.inconsistencies()
    assert "has 2 model versions" in found


def test_the_metrics_of_a_model_do_not_double_those_of_its_run(records: Records) -> None:
    client = records.client
    with track_run(records.server, client, RunRequest(NAME, "with a model"), QUIET) as tracker:
        tracker.log_metrics({"val/top1": 0.5}, 1)
        folder = tracker.local_folder("model")
        folder.mkdir()
        (folder / "MLmodel").write_text("flavors: {}\n")
        time.sleep(0.01)
        tracker.log_model(folder, ModelInfo(NAME, {"val/top1": 0.5}, "val/top1", "m", step=1))
    (point,) = client.get_metric_history(tracker.run_id, "val/top1")
    assert (point.step, point.value) == (1, 0.5)
    (model,) = client.search_logged_models([client.get_run(tracker.run_id).info.experiment_id])
    assert [(metric.key, metric.value) for metric in model.metrics] == [("val/top1", 0.5)]
    assert records.inconsistencies() == []
