"""A finished run of the small experiment, with its model registered."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from helpers import QUIET
from pictures import small_experiment, write_pictures

from runner.config.parser import parse
from runner.config.repeat import Repeat
from runner.tracking.mlflow_server import tracking_server
from runner.training.repeated import train


@dataclass(frozen=True)
class TrainedRun:
    """A run on the small pictures, recorded in `folder`/mlruns."""

    folder: Path
    pictures: Path
    run_id: str

    @property
    def tracking(self) -> str:
        """The value of `--tracking.root`."""
        return str(self.folder / "mlruns")

    @property
    def client(self) -> Any:
        """A client of its MLflow database."""
        return tracking_server(self.tracking).connect()

    def artifact(self, path: str) -> Path:
        """A local copy of one of its artifacts."""
        return Path(self.client.download_artifacts(self.run_id, path))

    def logged_model(self) -> Path:
        """The folder of its logged model."""
        version = self.client.get_model_version_by_alias("small", "champion")
        return Path(version.source.removeprefix("file://"))


def train_run(folder: Path, accelerator: Accelerator) -> TrainedRun:
    """Train an experiment named `small` and log its model; all its files are in `folder`."""
    pictures = write_pictures(folder / "pictures")
    words = small_experiment(pictures, folder / "cache", folder / "mlruns")
    words += ["--features.compile", "false", "--tracking.model", "true"]
    train(parse(words)[0], Repeat(), accelerator, QUIET)
    client = tracking_server(str(folder / "mlruns")).connect()
    (run,) = client.search_runs([client.get_experiment_by_name("small").experiment_id])
    (folder / "run_id").write_text(run.info.run_id)
    return TrainedRun(folder, pictures, run.info.run_id)


def read_run(folder: Path) -> TrainedRun | None:
    """The run that `train_run` trained in a folder; None if it did not."""
    try:
        return TrainedRun(folder, folder / "pictures", (folder / "run_id").read_text())
    except FileNotFoundError:
        return None
