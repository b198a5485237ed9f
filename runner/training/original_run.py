"""A run that is to be reproduced: whether it can be, what it logged, and the runs that reproduce it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.identity import Identity, weights_digest
from runner.config.schema import Experiment
from runner.data.manifest import Manifest, build_manifest
from runner.evaluation.reproduction import is_environment
from runner.tracking.run_lookup import RunInfo, download_artifact, search_runs
from runner.utils.console import Terminal
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient


def label(run: RunInfo) -> str:
    """Id and name of a run, for messages."""
    return f"{run.run_id[:8]} ({run.name})"


@dataclass(frozen=True)
class OriginalRun:
    """A run to reproduce, in MLflow."""

    client: MlflowClient
    run: RunInfo
    folder: Path
    """Folder for downloads."""

    def check(self) -> None:
        """Check that the run is a finished training. Raises `UserError`."""
        run, data = self.run, self.client.get_run(self.run.run_id).data
        children = search_runs(self.client, f"tags.`mlflow.parentRunId` = '{run.run_id}'")
        if children or ("runner.study" in data.tags and "mlflow.parentRunId" not in data.tags):
            trainings = [child.info for child in children if "runner.trial" not in child.data.tags]
            named = ", ".join(f"{info.run_id[:8]} ({info.run_name})" for info in trainings[:5])
            more = f" or {len(trainings) - 5} more" if len(trainings) > 5 else ""
            advice = f"reproduce one of them: {named}{more}" if trainings else "trials cannot be reproduced"
            raise UserError(
                f"Run {label(run)} is the parent of {len(children)} run{'s' * (len(children) != 1)} and not a training;"
                f" {advice}."
            )
        if "runner.trial" in data.tags:
            raise UserError(
                f"Run {label(run)} is a trial of a study: it has no test images and may have been pruned; train its"
                " settings with ./launch.sh train instead."
            )
        if run.status != "FINISHED":
            state = "is still running" if run.status == "RUNNING" else f"did not finish ({run.status})"
            raise UserError(
                f"Run {label(run)} {state} and has no test metrics to compare; choose a finished run."
            )
        if "test/best/loss" not in data.metrics:
            raise UserError(
                f"Run {label(run)} has no test metrics to compare; choose a run of ./launch.sh train."
            )

    def check_weights(self, experiment: Experiment) -> None:
        """Check that the file of the pretrained weights is the run's. Raises `UserError`."""
        then, now = self.identity(), Identity(weights=weights_digest(experiment.model.weights))
        if then.has_other_weights(now):
            raise UserError(
                f"{experiment.model.weights} does not hold the weights that run {label(self.run)} started from; set"
                " --model.weights to their file."
            )

    def identity(self, run: RunInfo | None = None) -> Identity:
        """Settings, images and weights of this or another run."""
        data = self.client.get_run((run or self.run).run_id).data
        return Identity.of_run(data.params, data.tags)

    def check_images(self, experiment: Experiment, terminal: Terminal) -> None:
        """Check that images and split are those of the run.

        Args:
            experiment: The run's experiment; its `data` says where the images are.
            terminal: For the progress of a scan.

        Raises:
            UserError: An image is missing or has changed, or the folder has other images; the message says which.
        """
        from runner.training.restore import restore_manifest  # imports torch, which `check` does not need

        table = self.download("manifest.csv").read_bytes().decode("utf-8", "surrogateescape")
        then = restore_manifest(experiment, table, terminal)
        if not self.identity().has_same_images(Identity(manifest=then.digest)):
            raise UserError(
                f"The manifest.csv of run {label(self.run)} is not the one that it was trained with."
            )
        now = build_manifest(experiment, terminal)
        if now.digest != then.digest:
            raise UserError(
                f"The images in {now.root} differ from those of run {label(self.run)}:"
                f" {manifest_difference(then, now)}; restore the folder, or set --data.root to"
                " the folder of the original images."
            )

    def download(self, path: str, run: RunInfo | None = None) -> Path:
        """Download an artifact of this or another run. Raises `UserError` if the run has none."""
        run = run or self.run
        folder = self.folder / run.run_id
        folder.mkdir(exist_ok=True)
        return download_artifact(self.client, run, path, folder)

    def environment(self, run: RunInfo | None = None) -> dict[str, Any]:
        """The environment of this or another run. Raises `UserError` if the runner did not write the file."""
        try:
            environment = json.loads(self.download("environment.json", run).read_text(encoding="utf-8"))
        except (ValueError, RecursionError):
            environment = None
        if not is_environment(environment):
            raise UserError(
                f"The environment.json of run {label(run or self.run)} was not written by the runner."
            )
        return environment

    def frozen_digest(self, run: RunInfo | None = None) -> str | None:
        """Digest of the frozen layers of this or another run; None without a readable checkpoint."""
        from runner.models.checkpoint import stored_frozen_digest

        try:
            return stored_frozen_digest(self.download("checkpoints/best.safetensors", run))
        except Exception:  # missing or damaged in any way
            return None

    def reproductions(self) -> dict[str, RunInfo]:
        """The runs that reproduce this one by id, newest first."""
        tagged = search_runs(self.client, f"tags.`runner.reproduces` = '{self.run.run_id}'")
        return {run.info.run_id: RunInfo.of(run) for run in tagged}

    def new_reproduction(self, before: Collection[str]) -> RunInfo:
        """The finished reproduction that is not among the run ids `before`.

        Raises:
            UserError: It is not in MLflow yet, or its images are not those of this run.
        """
        runs = self.reproductions().values()
        new = next((run for run in runs if run.run_id not in before and run.status == "FINISHED"), None)
        if new is None:
            raise UserError(
                f"Run {label(self.run)} was trained again, but not all of its records have reached MLflow; run"
                " ./launch.sh sync, then compare both runs with ./launch.sh compare."
            )
        if not self.identity().has_same_images(self.identity(new)):
            raise UserError(
                f"The images changed while {label(new)} was trained, so it does not reproduce {label(self.run)}; start"
                " again."
            )
        return new


def manifest_difference(then: Manifest, now: Manifest) -> str:
    """How many images were added and removed, and how many of the others moved to another split."""
    old, new = ({entry.path: entry.split for entry in manifest.entries} for manifest in (then, now))
    added, removed = len(new.keys() - old.keys()), len(old.keys() - new.keys())
    moved = sum(old[path] != new[path] for path in old.keys() & new.keys())
    return f"{added:,} added, {removed:,} removed, {moved:,} moved to another split"
