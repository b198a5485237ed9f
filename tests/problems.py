"""A tracking root and a cache with real records in them, and everything that can be wrong there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from cached_features import keys_of
from consistency import inconsistencies
from helpers import QUIET
from stores import DEAD, Store, dead_owner, end, metric, resumable

from runner.cli.doctor.file_checks import ABANDONED_AGE
from runner.features.shard_store import ShardStore
from runner.study import storage
from runner.tracking.interrupted_runs import STATE_FOLDER
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.training.snapshot import Snapshot

LONG_AGO = time.time() - 2 * ABANDONED_AGE
NAME = "small"
"""Of the experiment."""


@dataclass
class Records:
    """A tracking root with a store and a finished run in it, and a cache with cached features."""

    server: TrackingServer
    client: Any
    cache: Path
    run_id: str

    @property
    def root(self) -> Path:
        return self.server.root

    @property
    def options(self) -> list[str]:
        """The options of a command that looks at them."""
        return ["--tracking.root", str(self.root), "--cache", str(self.cache)]

    def inconsistencies(self) -> list[str]:
        return inconsistencies(self.root, self.cache)

    def files(self) -> dict[str, bytes]:
        """The content of all files but those that reading a database creates."""
        return {
            str(path): path.read_bytes()
            for folder in (self.root, self.cache)
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith("mlflow.db-") and path.name != ".lock"
        }

    def new_run(self, status: str = "", **tags: str) -> str:
        """Id of a new run in MLflow; RUNNING unless a status is given."""
        experiment = self.server.get_or_create_experiment(self.client, NAME)
        run_id = str(self.client.create_run(experiment, tags=tags).info.run_id)
        if status:
            self.client.set_terminated(run_id, status)
        return run_id

    def journal(self, run_id: str, uri: str = "") -> Journal:
        """An empty journal of a dead process."""
        return Journal.create(self.server.journals, dead_owner(uri or self.server.uri, run_id))


def healthy_records(store: Store, cache: Path) -> Records:
    """Records in which nothing is wrong."""
    server, client = store
    with track_run(server, client, RunRequest(NAME, "healthy"), QUIET) as tracker:
        for step in (1, 2, 3):
            tracker.log_metrics({"val/loss": 1 / step}, step)
        tracker.log_text("note.txt", "hello")
    features = ShardStore(cache / "features", {"layer": "a"}, {"layer": "a"})
    features.write(keys_of("ab"), torch.arange(8.0).reshape(2, 4), 1.0)
    features.release()
    return Records(server, client, cache, tracker.run_id)


def write_snapshot(journal: Journal, epoch: int = 0) -> Path:
    state = journal.folder / STATE_FOLDER
    state.mkdir(parents=True, exist_ok=True)
    return Snapshot(epoch, 0, epoch, {"trainable/a": torch.ones(3)}, {"history": []}).save(state, 5)


def mark_delivered(journal: Journal) -> None:
    journal.mark_sent((journal.folder / "events.jsonl").stat().st_size)


def interrupted_run(records: Records) -> Journal:
    """The delivered journal of a run that was stopped and can be resumed."""
    journal = records.journal(records.new_run("KILLED"))
    write_snapshot(journal)
    resumable(journal)
    journal.append(end("KILLED"))
    mark_delivered(journal)
    return journal


def corrupt(path: Path) -> None:
    """Change a byte of a file's numbers."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(bytes(content))


def shard(records: Records) -> Path:
    """The file of cached features."""
    (path,) = (records.cache / "features").rglob("*.safetensors")
    return path


# Problems: each function causes one, and returns what doctor is to say about it.


def run_without_process(records: Records) -> str:
    return f"run {records.new_run('', **DEAD.tags())[:8]}: is RUNNING"


def journal_without_end(records: Records) -> str:
    journal = records.journal(run_id := records.new_run())
    journal.append(metric("val/loss", 0.5, 1))
    with (journal.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "met')
    return f"run {run_id[:8]} is RUNNING"


def undelivered_records(records: Records) -> str:
    journal = records.journal(run_id := records.new_run())
    journal.append(metric("val/loss", 0.5, 1))
    journal.append(end())
    return f"2 records of run {run_id[:8]} wait"


def state_of_finished_run(records: Records) -> str:
    journal = records.journal(records.run_id)
    journal.append(end("KILLED"))
    mark_delivered(journal)
    write_snapshot(journal)
    resumable(journal)
    return "has finished"


def delivered_journal(records: Records) -> str:
    journal = records.journal(records.run_id)
    journal.append(end())
    mark_delivered(journal)
    return "has nothing left to deliver"


def damaged_snapshot(records: Records) -> str:
    corrupt(newest := write_snapshot(interrupted_run(records), 1))
    return f"{newest}: is damaged"


def incomplete_file(records: Records) -> str:
    path = records.cache / "scans" / ".memory.json.abcd.partial"
    path.parent.mkdir(parents=True)
    path.write_text("half")
    os.utime(path, (LONG_AGO, LONG_AGO))
    return f"{path}: is an incomplete file"


def incomplete_file_of_dead_run(records: Records) -> str:
    path = interrupted_run(records).artifact_path("checkpoints/.best.safetensors.abcd.partial")
    path.write_text("half")
    return f"{path}: is an incomplete file"


def damaged_features(records: Records) -> str:
    corrupt(path := shard(records))
    return f"{path}: is damaged"


def truncated_features(records: Records) -> str:
    path = shard(records)
    os.truncate(path, path.stat().st_size // 2)
    return f"{path}: is damaged"


def interrupted_removal(records: Records) -> str:
    corrupt(path := shard(records))
    path.parent.rename(path.parent.with_name(".removed-abcd"))
    return "was being removed"


def trial_without_worker(records: Records) -> str:
    address = storage.default_storage(records.root)
    study = optuna.create_study(study_name="some", storage=storage.connect(address), direction="maximize")
    trial = study.ask()
    trial.suggest_float("lr", 0, 1)
    trial.set_user_attr("owner", [DEAD.host, DEAD.pid, DEAD.started])
    return "study some: trial 0 is RUNNING"


Problem = Callable[[Records], str]
PROBLEMS: tuple[Problem, ...] = (
    run_without_process,
    journal_without_end,
    undelivered_records,
    state_of_finished_run,
    delivered_journal,
    damaged_snapshot,
    incomplete_file,
    incomplete_file_of_dead_run,
    damaged_features,
    truncated_features,
    interrupted_removal,
    trial_without_worker,
)
