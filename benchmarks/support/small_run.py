"""A small experiment that the fault benchmarks run many times, and its records in MLflow's SQLite database.

scikit-learn's digits through VGG11 with random weights, 32 px. Each run has its own experiment name and cache folder,
below one folder that holds everything.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

MetricPoints = dict[str, list[tuple[int, float]]]
"""Steps and values by metric name."""
MACHINE_METRICS = ("system/", "epoch_seconds", "images_per_second")
"""Beginnings of the metrics that measure the machine, and so differ between equal runs."""
TRAIN_COMMAND = (sys.executable, "-m", "runner.cli.main", "train")
SETTINGS = {
    "data.kind": "digits",
    "data.workers": "0",  # saves each run the start of loader workers
    "augment.resize": "36",
    "augment.crop": "32",
    "augment.views": "2",
    "model.arch": "vgg11",
    "model.weights": "null",
    "model.head": "pooled",
    "model.pool": "1",
    "model.width": "32",
    "train.epochs": "6",
    "train.batch_size": "32",
    "train.precision": "no",
    "tracking.system_metrics": "false",
    "tracking.gallery": "2",
    "tracking.gallery_every": "3",
}


def arguments(folder: Path, name: str, settings: dict[str, str] | None = None, *more: str) -> list[str]:
    """Arguments of `runner train` for a run.

    Args:
        folder: Holds the records, and a cache per name.
        name: Name of the MLflow experiment.
        settings: Differ from `SETTINGS`.
        more: Further arguments.
    """
    own = {"name": name, "cache": str(folder / name), "tracking.root": str(folder / "mlruns")}
    flags = {**own, **SETTINGS, **(settings or {})}
    return [*(word for setting, value in flags.items() for word in (f"--{setting}", value)), *more]


def metric_points(folder: Path, name: str) -> MetricPoints:
    """All points of an experiment's runs, except those of `MACHINE_METRICS`."""
    rows = _query(
        folder,
        """select m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid
        join experiments e on e.experiment_id = r.experiment_id where e.name = ? order by m.key, m.step""",
        name,
    )
    points: MetricPoints = {}
    for key, step, value in rows:
        if not key.startswith(MACHINE_METRICS):
            points.setdefault(key, []).append((step, value))
    return points


def run_statuses(folder: Path, name: str) -> list[str]:
    """Status of each run of an experiment, the oldest first."""
    rows = _query(
        folder,
        """select r.status from runs r join experiments e on e.experiment_id = r.experiment_id
        where e.name = ? order by r.start_time""",
        name,
    )
    return [status for (status,) in rows]


def runs(folder: Path, name: str) -> list[tuple[str, MetricPoints]]:
    """Status and points of each run of an experiment, the oldest first, without `MACHINE_METRICS`."""
    rows = _query(
        folder,
        """select r.run_uuid, r.status, m.key, m.step, m.value from runs r
        join experiments e on e.experiment_id = r.experiment_id left join metrics m on m.run_uuid = r.run_uuid
        where e.name = ? order by r.start_time, r.run_uuid, m.key, m.step""",
        name,
    )
    found: dict[str, tuple[str, MetricPoints]] = {}
    for run, status, key, step, value in rows:
        _, points = found.setdefault(run, (status, {}))
        if key is not None and not key.startswith(MACHINE_METRICS):
            points.setdefault(key, []).append((step, value))
    return list(found.values())


def machine_metric(folder: Path, name: str, metric: str) -> dict[int, float]:
    """The values of one of `MACHINE_METRICS` by step, in an experiment with one run."""
    rows = _query(
        folder,
        """select m.key, m.step, m.value from metrics m join runs r on r.run_uuid = m.run_uuid
        join experiments e on e.experiment_id = r.experiment_id where e.name = ? order by m.step""",
        name,
    )
    return {step: value for key, step, value in rows if key == metric}


def param_count(folder: Path, name: str) -> int:
    """Number of params of an experiment's runs."""
    rows = _query(
        folder,
        """select count(*) from params p join runs r on r.run_uuid = p.run_uuid
        join experiments e on e.experiment_id = r.experiment_id where e.name = ?""",
        name,
    )
    return int(rows[0][0])


def snapshot_seconds(folder: Path, name: str) -> tuple[float, float]:
    """Seconds that an experiment's only run spent on snapshots, and in total."""
    rows = _query(
        folder,
        """select m.value, (r.end_time - r.start_time) / 1000.0 from metrics m
        join runs r on r.run_uuid = m.run_uuid join experiments e on e.experiment_id = r.experiment_id
        where m.key = 'system/checkpoints/seconds' and e.name = ?""",
        name,
    )
    spent, total = rows[0]
    return spent, total


def difference(expected: MetricPoints, actual: MetricPoints) -> str:
    """Names of metrics that differ, for a message."""
    keys = sorted(key for key in {**expected, **actual} if expected.get(key) != actual.get(key))
    return f"{len(keys)} metrics differ: {keys[:5]}"


def _query(folder: Path, sql: str, name: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        return database.execute(sql, (name,)).fetchall()
