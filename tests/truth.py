"""What is untrue in a folder of records: a look at database and files that is independent of the runner's doctor.

It is meant for a place where nothing runs any more: whatever says that it runs, lies.
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

TWICE = """
SELECT run_uuid, key, step, COUNT(*) FROM metrics GROUP BY run_uuid, key, step HAVING COUNT(*) > 1
"""
CREATED, CHANGED = 4, 6
"""Operations of Optuna's journal that begin a trial and change its state."""
RUNNING = 0
"""Optuna's number of that state."""
READY = 2
"""MLflow's number of a logged model that is whole."""


def lies(root: Path, cache: Path | None = None) -> list[str]:
    """Everything under a tracking root, and in a cache, that is not true when nothing runs; each in half a sentence."""
    found = []
    finished: set[str] = set()
    if (database := root / "mlflow.db").exists():
        try:
            with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                said = connection.execute("PRAGMA integrity_check").fetchone()[0]
                found += [f"database: {said}"] if said != "ok" else []
                found += _of_database(connection)
                finished = {
                    run
                    for (run,) in connection.execute("SELECT run_uuid FROM runs WHERE status = 'FINISHED'")
                }
        except sqlite3.DatabaseError as error:
            found.append(f"database: {error}")
    found += _of_journals(root / "journals", finished)
    found += _of_studies(root / "studies.journal")
    for place in (root, *([cache] if cache else [])):
        found += [f"half written: {path}" for path in sorted(place.rglob("*.partial"))]
    if cache is not None:
        found += _of_stores(cache / "features")
    return found


def _of_database(connection: sqlite3.Connection) -> Iterator[str]:
    for run, status, start, end in connection.execute(
        "SELECT run_uuid, status, start_time, end_time FROM runs WHERE lifecycle_stage = 'active'"
    ):
        if status == "RUNNING":
            yield f"run {run} is RUNNING"
        elif end is None or end < start:
            yield f"run {run} is {status}, and ended at {end}, begun at {start}"
    for run, key, step, count in connection.execute(TWICE):
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
        waiting = content[int(sent.read_text()) if sent.exists() else 0 :]
        if waiting:
            yield f"journal {name} has {len(waiting.splitlines())} events that were not delivered"
        if not content.endswith(b"\n"):
            yield f"journal {name} ends in mid-line"
        elif json.loads(content.splitlines()[-1])["kind"] != "end":
            yield f"journal {name} has no end"
        kept = sorted((folder / "state").glob("*.safetensors"))
        if kept:
            try:
                snapshot.load(kept[-1])
            except ValueError as error:
                yield f"snapshot {kept[-1]}: {error}"


def _of_studies(path: Path) -> Iterator[str]:
    states: list[int] = []
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else []):
        try:
            said: dict[str, Any] = json.loads(line)
        except ValueError:
            yield f"line {number + 1} of {path} is none"
            continue
        if said["op_code"] == CREATED:
            states.append(said.get("state", RUNNING))
        elif said["op_code"] == CHANGED and states[said["trial_id"]] in (RUNNING, 4):
            states[said["trial_id"]] = said["state"]
    for number, state in enumerate(states):
        if state == RUNNING:
            yield f"trial {number} of {path} is RUNNING"


def _of_stores(root: Path) -> Iterator[str]:
    for path in sorted(root.rglob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                said, rows = file.metadata() or {}, file.get_tensor("rows")
            keys = json.loads(said["keys"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            yield f"{path} is no file of rows ({error})"
            continue
        head = zlib.crc32(f"{keys} {tuple(rows.shape)} {rows.dtype}".encode())
        total = zlib.crc32(rows.flatten().view(torch.uint8).numpy().tobytes(), head)
        if said.get("checksum") != f"{total:08x}":
            yield f"{path}: its checksum differs"
        if len(keys) != len(rows):
            yield f"{path}: {len(keys)} keys of {len(rows)} rows"
