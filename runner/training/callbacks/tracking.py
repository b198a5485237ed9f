"""Logs a run: settings, data and environment at its start, metrics of each epoch, files and test scores at its end."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from runner.config.effective import decisive_settings
from runner.config.identity import Identity
from runner.config.tree import as_yaml
from runner.data.images import SPLITS
from runner.evaluation.predictions import Predictions
from runner.tracking.tracker import Tracker
from runner.training import curves, devices
from runner.training.callbacks.base import Callback
from runner.training.environment import describe_environment
from runner.training.fit_state import FitState
from runner.training.hosts import this_world
from runner.training.results import EpochResult, RunResult
from runner.training.resume import ResumePoint
from runner.training.run_names import run_description
from runner.training.setup import Setup
from runner.training.snapshot import Snapshot
from runner.training.solvers.path_figure import log_path


class TrackingCallback(Callback):
    """Logs a run to a tracker.

    Args:
        setup: The run's experiment, images and features.
        tracker: Where to log. It ignores what an interrupted run has logged already.
    """

    def __init__(self, setup: Setup, tracker: Tracker) -> None:
        self.setup = setup
        self.tracker = tracker
        self._draws_curves = True
        """The folds of a cross-validation have none: MLflow draws their metrics, and drawing takes a second a run."""

    def log_start(self, start: ResumePoint) -> None:
        """Log settings, images, split and environment. Called before features are computed."""
        experiment, manifest, tracker = self.setup.experiment, self.setup.manifest, self.tracker
        is_fold = bool(start.parent_id and experiment.split.folds)
        self._draws_curves = not is_fold and experiment.train.solver == "gradient"
        tracker.log_params(decisive_settings(experiment))
        if not self.setup.accelerator.is_main_process:
            return
        environment = describe_environment(self.setup.accelerator)
        tracker.set_tags(self._tags(start, environment))
        self._log_datasets()
        tracker.log_text("experiment.yaml", as_yaml(experiment))
        tracker.log_text("manifest.csv", manifest.to_csv())
        if manifest.rejected:
            tracker.log_text("unreadable.csv", manifest.rejected_to_csv())
        tracker.log_text("environment.json", json.dumps(environment, indent=1))

    def _log_datasets(self) -> None:
        """Log the images of each split as an input; equal images have equal digests, whatever the other splits are."""
        manifest, data = self.setup.manifest, self.setup.experiment.data
        name = data.kind if data.kind != "folder" else manifest.root.name
        for split in SPLITS:
            entries = manifest.select(split)
            images = entries.digest(with_splits=False)
            classes = len(np.unique(entries.labels))
            profile = json.dumps({"images": len(entries), "classes": classes})
            self.tracker.log_dataset(f"{name} {split}", images[:32], str(manifest.root), profile, split)

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        """Log the epoch's metrics."""
        self.tracker.log_metrics(result.metrics(), result.number)

    def teardown(self, state: FitState) -> None:
        """Log checkpoints and curves, also of a training that was interrupted."""
        if not self.setup.accelerator.is_main_process or not state.history:
            return
        for path in sorted(self.tracker.artifact_path("checkpoints/any").parent.glob("*.safetensors")):
            self.tracker.log_artifact(path, "checkpoints")
        if state.solution is not None:
            log_path(state.solution, self.setup.experiment.train, self.setup.experiment.name, self.tracker)
        if self._draws_curves:
            curves.log_curves(state.history, self.setup.experiment.name, self.tracker)

    def on_test_end(self, result: RunResult, predictions: Predictions) -> None:
        """Log the test scores, at step 0: MLflow draws them as bars, not as curves with one point."""
        best, tracker = result.best_epoch, self.tracker
        tracker.log_metrics({**result.best.metrics("test/best"), **result.last.metrics("test/last")})
        tracker.log_metrics({**best.val.metrics("val/best"), "best_epoch": best.number})
        if any(features.extractor.stages for features in self.setup.stage_features):
            tracker.log_metrics(self.setup.features.stats.metrics())
            tracker.log_metrics({"system/features/store_mib": self.setup.disk_bytes() / 2**20})
        if self.setup.accelerator.is_main_process:
            tracker.log_text("predictions.csv", predictions.to_csv())

    def state_dict(self) -> dict[str, Any]:
        """What features cost and saved so far."""
        return {"feature_stats": asdict(self.setup.features.stats)}

    def restore(self, snapshot: Snapshot, history: Sequence[EpochResult]) -> None:
        """Log the epochs of the interrupted run that its tracker may not have got."""
        self.setup.features.stats.restore(snapshot.values["feature_stats"])
        for result in history:
            self.tracker.log_metrics(result.metrics(), result.number)

    def _tags(self, start: ResumePoint, environment: dict[str, Any]) -> dict[str, str]:
        tags = {
            "mlflow.note.content": run_description(self.setup.experiment, self.setup.manifest),
            **Identity.on_images(self.setup.experiment, self.setup.manifest.digest).tags(),
            "runner.device": devices.describe_device(self.setup.accelerator),
            **this_world().tags(),
            "mlflow.user": environment["user"],
            "mlflow.source.name": environment["command"].split()[0],
            "mlflow.source.type": "LOCAL",
        }
        if environment["git_commit"]:
            tags["mlflow.source.git.commit"] = environment["git_commit"]
        if start.run_id:
            tags["runner.resumed"] = start.position
        if start.branch_of:
            tags["runner.branch_of"] = f"{start.branch_of} at {start.position}"
        return tags
