"""The interface that training logs through. A tracker for another service is a subclass of `Tracker`.

Only the main process (rank 0) has a tracker that does anything; the others hold a plain `Tracker`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runner.tracking.model_registry import ModelInfo


class Tracker:
    """Logs what a run does. This base class logs nothing, and its methods may be called on any rank.

    The methods are called in training's main thread and must return quickly: a tracker for a slow service queues
    what it gets. `run_lifecycle.track_run` decides when a run starts and how it ends.
    """

    run_id = ""
    name = ""
    delivered = True
    """Whether everything that was logged has reached the service."""
    link = ""
    """The address of the run's page, if the service has one."""
    deleted = False
    """Whether the run was deleted in the service while it ran."""

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        """Log a point of each named curve. Values may be infinite or NaN."""

    def log_params(self, values: dict[str, Any]) -> None:
        """Log settings by dotted name; a setting never changes during a run."""

    def set_tags(self, values: dict[str, str]) -> None:
        """Set notes by name; a later value replaces an earlier one."""

    def log_text(self, name: str, content: str) -> None:
        """Log text as an artifact."""

    def artifact_path(self, name: str) -> Path:
        """Where to write a file before `log_artifact` logs it; its folder exists. Only on rank 0."""
        raise NotImplementedError

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Log a complete file at an `artifact_path` into a folder of the run's artifacts."""

    def log_dataset(self, name: str, digest: str, source: str, profile: str, context: str) -> None:
        """Log which data the run uses; `profile` is a JSON object of counts, `context` the split."""

    def log_model(self, folder: Path, info: ModelInfo) -> None:
        """Log and register a model that was written to `local_folder("model")`."""

    def local_folder(self, name: str) -> Path:
        """A folder that stays on local disk with the run, such as the one of its snapshots. Only on rank 0."""
        raise NotImplementedError

    def has_logged(self, kind: str) -> bool:
        """Whether this run, before it was interrupted, logged an "artifact", "input" or "model"."""
        return False

    def logged_artifacts(self, prefix: str) -> list[str]:
        """Paths of the artifacts that this run logged before it was interrupted, in order, that begin with `prefix`."""
        return []
