"""Interrupted runs: the record that resuming needs, written at the start of a run and read when it is resumed.

The record is `state/run.json` in the run's journal; the snapshots of training lie beside it. Both are removed with the
journal when the run has finished. This module does not import torch.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.identity import Identity
from runner.config.repeat import COUNTED, Over, Repeat
from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.utils.atomic_files import write_text
from runner.utils.hashing import digest
from runner.utils.text import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE_FOLDER = "state"
RESOLVED = {"data.depth": int, "train.precision": str, "features.batch_size": int, "features.compile": bool}
"""Settings that "auto" leaves to the device, with the type they resolve to; a resumed run keeps their values."""


@dataclass(frozen=True)
class RunRecord:
    """What a run was asked to do.

    Args:
        name: Of the run.
        requested: The experiment as nested settings, before "auto" was resolved.
        resolved: What "auto" was resolved to, by dotted name; empty before that.
        parent_id: Id of the run that it is a child of; empty if of none.
        repeat: Number of runs that it trains as its children; 1: it is trained itself.
        diverged: Its training diverged.
        manifest: Digest of its images and their split; empty before they were scanned.
        weights: Digest of its pretrained weights, likewise.
        repeat_over: Which seeds of its children count up, as in `Repeat`.
    """

    name: str
    requested: dict[str, Any]
    resolved: dict[str, Any] = field(default_factory=dict)
    parent_id: str = ""
    repeat: int = 1
    diverged: bool = False
    manifest: str = ""
    weights: str = ""
    repeat_over: Over = "seed"

    @property
    def repeated(self) -> Repeat:
        """How often the experiment is trained, and over what."""
        return Repeat(self.repeat, self.repeat_over)

    @property
    def has_parts(self) -> bool:
        """Whether it trains runs as its children: several, or one for each fold."""
        split = self.requested.get("split", {})
        return self.repeat > 1 or (split.get("folds") is not None and split.get("fold") is None)

    @property
    def identity(self) -> Identity:
        """Settings, images and weights of the run."""
        return Identity.of(self.requested, self.manifest, self.weights)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> RunRecord:
        """The inverse of `asdict`. Raises ValueError or TypeError for other content."""
        record = cls(**content)
        kinds = {
            "name": str,
            "requested": dict,
            "resolved": dict,
            "parent_id": str,
            "repeat": int,
            "repeat_over": str,
            "diverged": bool,
            "manifest": str,
            "weights": str,
        }
        valid = all(type(getattr(record, name)) is kind for name, kind in kinds.items())
        if not (
            valid
            and record.repeat_over in COUNTED
            and all(_is_resolved(name, value) for name, value in record.resolved.items())
        ):
            raise ValueError("not the record of a run")
        return record


def resolved_settings(experiment: Experiment) -> dict[str, Any]:
    """What "auto" was resolved to in an experiment, by dotted name."""
    settings = flatten(as_tree(experiment))
    return {name: settings[name] for name in RESOLVED if _is_resolved(name, settings.get(name))}


def _is_resolved(name: str, value: object) -> bool:
    return type(value) is RESOLVED.get(name) and value != "auto"


@dataclass(frozen=True)
class InterruptedRun:
    """A run with a record on disk. Its process may still run: `journal.alive` says so."""

    journal: Journal
    record: RunRecord

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.journal.owner.run_id

    @property
    def state(self) -> Path:
        """The folder of its record and snapshots."""
        return self.journal.folder / STATE_FOLDER

    @property
    def label(self) -> str:
        """Id and name for messages."""
        return f"{self.run_id[:8]} ({one_line(self.record.name, 100)})"


def write_record(state: Path, record: RunRecord) -> None:
    """Write a run's record into its state folder, with a digest that shows damage."""
    content = asdict(record)
    write_text(state / "run.json", json.dumps({**content, "digest": digest(content)}))


def read_interrupted_run(journal: Journal) -> InterruptedRun | None:
    """The run of a journal; None if it has no record, or a damaged one."""
    try:
        content = json.loads((journal.folder / STATE_FOLDER / "run.json").read_text(encoding="utf-8"))
        if content.pop("digest") != digest(content):
            return None
        return InterruptedRun(journal, RunRecord.from_dict(content))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def list_interrupted_runs(server: TrackingServer) -> list[InterruptedRun]:
    """The runs with a record under a server's root, newest first; those that still run are included."""
    found = []
    for journal in Journal.find_all(server.journals):
        # A finished run may still have a record, while its events wait for delivery.
        if journal.resumable and (run := read_interrupted_run(journal)) is not None:
            with suppress(FileNotFoundError):
                found.append(((run.state / "run.json").stat().st_mtime, run))
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def why_not_resumable(client: MlflowClient, run_id: str) -> str:
    """Why MLflow's record rules out resuming a run, to follow its name in a sentence; empty if it does not."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        return "is not in MLflow any more" if error.error_code == "RESOURCE_DOES_NOT_EXIST" else ""
    if info.lifecycle_stage != "active":
        return "was deleted in MLflow"
    return "has finished" if info.status == "FINISHED" else ""
