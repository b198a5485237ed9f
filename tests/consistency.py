"""A check of run records that shares no code with `runner doctor`: what in a database and its files is not true.

It is for a place where nothing runs any more: whatever is marked as running is wrong.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from runner.training import snapshot

DOUBLED_POINTS = """
SELECT run_uuid, key, step, COUNT(*) FROM metrics GROUP BY run_uuid, key, step HAVING COUNT(*) > 1
"""
CREATED, CHANGED = 4, 6
"""Operations in Optuna's journal that create a trial and change its state."""
RUNNING, WAITING = 0, 4
"""Optuna's numbers of states of a trial."""
READY = 2
"""MLflow's number of the state of a complete logged model."""


def inconsistencies(root: Path, cache: Path | None = None) -> list[str]:
    """Everything under a tracking root, and in a cache, that is not true while nothing runs."""
    found = []
    finished: set[str] = set()
    if (database := root / "mlflow.db").exists():
        try:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                result = connection.execute("PRAGMA integrity_check").fetchone()[0]
                found += [f"database: {result}"] if result != "ok" else []
                found += _of_database(connection)
                rows = connection.execute("SELECT run_uuid FROM runs WHERE status = 'FINISHED'")
                finished = {run for (run,) in rows}
        except sqlite3.DatabaseError as error:
            found.append(f"database: {error}")
    found += _of_journals(root / "journals", finished)
    found += _of_studies(root / "studies.journal")
    for place in (root, *([cache] if cache else [])):
        found += [f"incomplete file: {path}" for path in sorted(place.rglob("*.partial"))]
    if cache is not None:
        found += _of_feature_stores(cache / "features")
    return found


def _of_database(connection: sqlite3.Connection) -> Iterator[str]:
    for run, status, start, end in connection.execute(
        "SELECT run_uuid, status, start_time, end_time FROM runs WHERE lifecycle_stage = 'active'"
    ):
        if status == "RUNNING":
            yield f"run {run} is RUNNING"
        elif end is None or end < start:
            yield f"run {run} is {status}, started at {start} and ended at {end}"
    for run, key, step, count in connection.execute(DOUBLED_POINTS):
        yield f"run {run} has {count} points of {key} at step {step}"
    for model, status in connection.execute(
        "SELECT model_id, status FROM logged_models WHERE lifecycle_stage = 'active'"
    ):
        if int(status) != READY:
            yield f"logged model {model} is not ready ({status})"
    for run, count in connection.execute(
        "SELECT run_id, COUNT(*) FROM model_versions WHERE current_stage != 'Deleted_Internal'"
        " AND run_id IS NOT NULL GROUP BY run_id, name HAVING COUNT(*) > 1"
    ):
        yield f"run {run} has {count} model versions"


def _of_journals(root: Path, finished: set[str]) -> Iterator[str]:
    for folder in sorted(each for each in root.glob("*") if each.is_dir()):
        name = folder.name
        try:
            run = json.loads((folder / "owner.json").read_text())["run_id"]
        except (OSError, ValueError, KeyError):
            yield f"journal {name} has no owner"
            continue
        if run in finished:
            yield f"journal {name} is of a finished run"
        events = folder / "events.jsonl"
        content = events.read_bytes() if events.exists() else b""
        sent = folder / "sent"
        pending = content[int(sent.read_text()) if sent.exists() else 0 :]
        if pending:
            yield f"journal {name} has {len(pending.splitlines())} events that were not delivered"
        if not content.endswith(b"\n"):
            yield f"journal {name} ends within a line"
        elif json.loads(content.splitlines()[-1])["kind"] != "end":
            yield f"journal {name} has no end"
        snapshots = sorted((folder / "state").glob("*.safetensors"))
        if snapshots:
            try:
                snapshot.load(snapshots[-1])
            except ValueError as error:
                yield f"snapshot {snapshots[-1]}: {error}"


def _of_studies(path: Path) -> Iterator[str]:
    states: list[int] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else []):
        try:
            operation: dict[str, Any] = json.loads(line)
        except ValueError:
            yield f"line {number + 1} of {path} is damaged"
            continue
        if operation["op_code"] == CREATED:
            states.append(operation.get("state", RUNNING))
        elif operation["op_code"] == CHANGED and states[operation["trial_id"]] in (RUNNING, WAITING):
            states[operation["trial_id"]] = operation["state"]
    for number, state in enumerate(states):
        if state == RUNNING:
            yield f"trial {number} of {path} is RUNNING"


def _of_feature_stores(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata, rows = file.metadata() or {}, file.get_tensor("features")
            keys = json.loads(metadata["keys"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            yield f"{path} does not hold features ({error})"
            continue
        head = zlib.crc32(f"{keys} {tuple(rows.shape)} {rows.dtype}".encode())
        total = zlib.crc32(rows.flatten().view(torch.uint8).numpy().tobytes(), head)
        if metadata.get("checksum") != f"{total:08x}":
            yield f"{path}: its checksum differs"
        if len(keys) != len(rows):
            yield f"{path}: {len(keys)} keys for {len(rows)} rows"
