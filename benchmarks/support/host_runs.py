"""Small trainings for several hosts: each in a folder of its own, with a store and a cache."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.support.phases import EPOCHS
from benchmarks.support.processes import ROOT, user_environment
from benchmarks.support.small_run import MetricPoints, arguments, runs
from benchmarks.support.tiny_images import write_tiny_images

NAME = "small"
SETTINGS = {
    "data.kind": "folder",
    "model.normalize": "statistics",
    "model.width": "16",
    "train.epochs": str(EPOCHS),
    "train.batch_size": "8",
    "features.batch_size": "8",
    "features.compile": "false",
    "schedule.kind": "constant",
    "checkpoints.minutes": "0.005",
    "tracking.model": "false",
    "tracking.gallery": "0",
}
"""Differ from those of `small_run`: it is quicker, and snapshots are frequent."""
CREATE_STORE = (
    "import sys; from runner.tracking.mlflow_server import tracking_server as of; of(sys.argv[1]).connect()"
)


@dataclass(frozen=True)
class RunFolder:
    """The store, the cache and the words of a training.

    Args:
        path: Of the folder.
        words: After `runner train`.
    """

    path: Path
    words: list[str]

    def runs(self) -> list[tuple[str, MetricPoints]]:
        """Status and points of its runs in MLflow, the oldest first."""
        return runs(self.path, NAME)

    def finished_as(self, expected: MetricPoints, had_trained: bool = False) -> bool:
        """Whether a run is finished, has these metrics in every bit, and none is left RUNNING.

        Args:
            expected: The metrics.
            had_trained: The training was interrupted after its first epoch: that run must have been continued, and no
                other one may have replaced it.
        """
        found = self.runs()
        finished = [points for status, points in found if status == "FINISHED"]
        is_closed = all(
            status == "FINISHED" or (status != "RUNNING" and not had_trained) for status, _ in found
        )
        return bool(finished) and all(points == expected for points in finished) and is_closed


@dataclass
class RunFolders:
    """Makes folders for trainings on the same images.

    Args:
        folder: For all.
        images: Number of images.
        classes: Number of their classes.
        settings: Differ from `SETTINGS`.
    """

    folder: Path
    images: int
    classes: int
    settings: dict[str, str]

    def __post_init__(self) -> None:
        self._images = self.folder / "images"
        write_tiny_images(self._images, self.images, self.classes)
        self._template = self.folder / "template"
        subprocess.run(
            [sys.executable, "-c", CREATE_STORE, str(self._template)],
            env=user_environment(PYTHONPATH=str(ROOT)),
            check=True,
        )

    def new(self, name: str) -> RunFolder:
        """A folder with an empty store and an empty cache."""
        path = self.folder / name
        (path / "mlruns").mkdir(parents=True)
        shutil.copy(self._template / "mlflow.db", path / "mlruns")  # to create one takes seconds
        settings = {"data.root": str(self._images), **SETTINGS, **self.settings}
        return RunFolder(path, arguments(path, NAME, settings))
