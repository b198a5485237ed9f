"""Runs with all that a run of MLflow can have but a model, and what must be the same when they arrive elsewhere."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from stores import Store, new_run

from runner.tracking.run_lookup import ORIGINAL_TAG, PARENT_TAG

SECRET = "s3cret-word"
ODD = (math.nan, math.inf, -math.inf, 0.1, 5e-324, -0.0)


def add_run(store: Store, folder: Path, name: str, parent: str = "", ended: str = "FINISHED") -> str:
    """A run of another program's making, with all that a run can have but a model."""
    client: MlflowClient = store[1]
    run_id = new_run(store, **({PARENT_TAG: parent} if parent else {}))
    client.update_run(run_id, name=name)
    points = [Metric(f"m{i}", value, 1000 + i, step) for i, value in enumerate(ODD) for step in (-1, 0, 7, 7)]
    points += [Metric("long", step / 3, 5000 - step, step) for step in range(1100)]
    points += [Metric("again", value, 1, 3) for value in (0.1, 0.2, 0.3)]
    for start in range(0, len(points), 1000):
        client.log_batch(run_id, points[start : start + 1000])
    client.log_batch(run_id, params=[Param(f"p{i}", f"{name} {i}") for i in range(90)])
    client.log_batch(run_id, params=[Param("long", "x" * 6000), Param("empty", "")])
    client.log_batch(
        run_id, tags=[RunTag("note", "line\nbreak ü"), RunTag("token", f"http://me:{SECRET}@host/")]
    )
    inputs = [("train", f"sqlite://me:{SECRET}@host/"), ("test", "/data")]
    client.log_inputs(
        run_id,
        [
            DatasetInput(
                Dataset(f"flowers {context}", "d1", "local", source, None, '{"images": 3}'),
                [InputTag("mlflow.data.context", context)],
            )
            for context, source in inputs
        ],
    )
    for path, content in (
        ("a/b ü (1).txt", name),
        ("empty.bin", ""),
        ("weights.safetensors", "the same" * 999),
    ):
        file = folder / name / Path(path).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        client.log_artifact(run_id, str(file), str(Path(path).parent) if "/" in path else None)
    if ended != "RUNNING":
        client.set_terminated(run_id, ended, 1_700_000_000_123)
    return run_id


def everything(client: MlflowClient, run_id: str, folder: Path) -> dict[str, Any]:
    """All of a run but its ids, with the bits of every value and the content of every file."""
    run = client.get_run(run_id)
    history = {name: client.get_metric_history(run_id, name) for name in run.data.metrics}
    folder = folder / run_id
    folder.mkdir(parents=True)
    client.download_artifacts(run_id, "", str(folder))
    own = (ORIGINAL_TAG, PARENT_TAG, "runner.model", "runner.champion")
    return {
        "info": (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time),
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "params": run.data.params,
        "tags": {
            name: value.replace(SECRET, "…") for name, value in run.data.tags.items() if name not in own
        },
        "metrics": {
            name: sorted((point.step, point.timestamp, struct.pack("d", point.value)) for point in points)
            for name, points in history.items()
        },
        "last": {name: struct.pack("d", value) for name, value in run.data.metrics.items()},
        "inputs": sorted(
            (
                *(each.dataset.name, each.dataset.digest, each.dataset.source_type, each.dataset.profile),
                *(each.dataset.source.replace(SECRET, "…"), each.dataset.schema),
                *sorted((tag.key, tag.value) for tag in each.tags),
            )
            for each in run.inputs.dataset_inputs
        ),
        "files": {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        },
    }


def stored(root: Path) -> list[Path]:
    """All files and folders of artifacts in a store."""
    return sorted((root / "artifacts").rglob("*"))
