"""Restores a finished run from its files: its images as they were, and its checkpoints, ready to be evaluated."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.config.parser import read
from runner.config.schema import Experiment
from runner.config.tree import override
from runner.data.dataset_listing import list_dataset
from runner.data.manifest import Manifest, parse_manifest
from runner.data.scan import scan_images
from runner.data.transforms import EVALUATION_VIEW
from runner.evaluation.checkpoint_evaluation import CheckpointEvaluation
from runner.evaluation.predictions import Predictions
from runner.features.in_memory import InMemoryFeatures
from runner.models import checkpoint
from runner.tracking.run_lookup import MOST_NAMED, PARENT_TAG, RunInfo, download_artifact, search_runs
from runner.training import devices
from runner.training.error_translation import translate_errors
from runner.training.setup import Setup, assemble
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.long_wait import long_wait
from runner.utils.paths import cache_folder
from runner.utils.text import valid_unicode

if TYPE_CHECKING:
    from mlflow import MlflowClient


def restore_manifest(experiment: Experiment, table: str, terminal: Terminal) -> Manifest:
    """The manifest of a run, after checking that its images have not changed since.

    Args:
        experiment: The run's experiment; its `data` says where the images are.
        table: The content of the run's manifest.csv.
        terminal: For the progress of a scan.

    Raises:
        UserError: An image is missing or has changed; the message names it.
    """
    cache = cache_folder(experiment.cache)
    listing = list_dataset(experiment.data, cache, terminal)
    manifest = parse_manifest(table, listing.files)
    then, now = manifest.entries, scan_images(listing, cache, terminal).digests
    where = listing.paths.positions(then.paths)
    if unknown := np.flatnonzero(where < 0).tolist():  # perhaps a table without bytes that are not Unicode
        present = {valid_unicode(path): index for index, path in enumerate(listing.paths)}
        where[unknown] = [present.get(valid_unicode(then.paths[index]), -1) for index in unknown]
    same = where >= 0
    same[same] = (now[where[same]] == then.digests[same]).all(axis=1)
    if not same.all():
        index = int(same.argmin())
        raise UserError(
            f"{listing.files.shown(then.paths[index])} {'is missing' if where[index] < 0 else 'has changed'} since the"
            " run; restore it, or set --data.root to its folder."
        )
    return dataclasses.replace(manifest, entries=dataclasses.replace(then, paths=listing.paths.take(where)))


@dataclass(frozen=True)
class LoadedCheckpoint:
    """A checkpoint with the data of its run. All processes call its methods together."""

    name: str
    """`best` or `last`."""
    epoch: int
    setup: Setup

    def predict(self, split: str) -> Predictions:
        """Predictions on a split."""
        setup = self.setup
        setup.features.reserve_space([(split, EVALUATION_VIEW)])
        features = setup.features.get(split, EVALUATION_VIEW)
        logits = setup.inference().logits(features, len(setup.manifest.select(split)))
        return Predictions.of_split(setup.manifest, split, logits)

    def evaluate(self, split: str) -> CheckpointEvaluation:
        """Predictions on a split, with what is needed to look into them."""
        setup = self.setup
        return CheckpointEvaluation(
            self.name,
            self.epoch,
            split,
            setup.experiment,
            setup.model,
            setup.loader,
            setup.manifest.select(split),
            self.predict(split),
        )


def _check_has_model(client: MlflowClient, run: RunInfo) -> None:
    """Raises `UserError` for the parent of repeated runs or of a cross-validation, whose children have the models."""
    params = client.get_run(run.run_id).data.params
    if "repeat" not in params:
        return
    parts = [RunInfo.of(part) for part in search_runs(client, f"tags.`{PARENT_TAG}` = '{run.run_id}'")]
    named = ", ".join(
        f"{part.run_id[:8]} ({part.name.partition(' of ')[0]})" for part in parts[: -MOST_NAMED - 1 : -1]
    )
    is_folds = params.get("split.folds", "None") != "None"
    what = "a cross-validation" if is_folds else "the parent of repeated runs"
    table = "; its out-of-fold predictions are its artifact predictions.csv" * is_folds
    raise UserError(
        f"Run {run.run_id[:8]} ({run.name}) is {what} and has no model of its own{table}; evaluate one of its runs:"
        f" {named or 'none is left'}."
    )


def restore_checkpoints(
    client: MlflowClient, run: RunInfo, moved: Mapping[str, str], folder: Path, terminal: Terminal
) -> list[LoadedCheckpoint]:
    """Download a run's checkpoints and set them up with its data, the best first. All processes call it together.

    Args:
        client: Of the run records.
        run: The run.
        moved: Other values of settings that say where the images are.
        folder: Folder for the downloads.
        terminal: For progress.

    Raises:
        UserError: Something that is needed is missing or damaged, or images have changed.
    """
    _check_has_model(client, run)
    experiment = read(download_artifact(client, run, "experiment.yaml", folder))
    experiment = override(experiment, moved)
    experiment = devices.adapt_to_device(experiment)
    # Bytes, because a path may contain a line break.
    table = download_artifact(client, run, "manifest.csv", folder).read_bytes()
    checkpoints = download_artifact(client, run, "checkpoints", folder)
    accelerator = devices.create_accelerator(experiment)
    with translate_errors(experiment, accelerator), long_wait(), accelerator.local_main_process_first():
        manifest = restore_manifest(experiment, table.decode("utf-8", "surrogateescape"), terminal)
    in_memory = InMemoryFeatures()  # both checkpoints read the same features
    restored = []
    for path in (checkpoints / "best.safetensors", checkpoints / "last.safetensors"):
        if path.exists():
            loaded = checkpoint.load(path)
            if loaded.model.spec.classes != manifest.classes:
                raise UserError(f"{path.name} was trained on other classes than those in the run's manifest.")
            setup = assemble(experiment, manifest, loaded.model, accelerator, terminal, in_memory)
            restored.append(LoadedCheckpoint(path.stem, loaded.epoch, setup))
    return restored
