"""Restores a finished run from its files: its images as they were, and its checkpoints, ready to be evaluated."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from runner.config.schema import Experiment
from runner.data.datasets import locate
from runner.data.manifest import Manifest, parse_manifest
from runner.data.scan import scan_images
from runner.data.transforms import EVALUATION_VIEW
from runner.evaluation.checkpoint_evaluation import CheckpointEvaluation
from runner.evaluation.predictions import Predictions
from runner.features.cache import InMemoryFeatures
from runner.models import checkpoint
from runner.training.setup import Setup, assemble
from runner.utils.console import Terminal
from runner.utils.errors import UserError


def restore_manifest(experiment: Experiment, table: str, terminal: Terminal) -> Manifest:
    """The manifest of a run, after checking that its images have not changed since.

    Args:
        experiment: The run's experiment; its `data` says where the images are.
        table: The content of the run's manifest.csv.
        terminal: For the progress of a scan.

    Raises:
        UserError: An image is missing or has changed; the message names it.
    """
    cache = Path(experiment.cache).expanduser()
    source = locate(experiment.data, cache, terminal)
    manifest = parse_manifest(table, source.root)
    files = scan_images(source, cache, experiment.data.follow_links, terminal)
    present = {file.path: file.digest for file in files}
    for entry in manifest.entries:
        if present.get(entry.path) != entry.digest:
            problem = "has changed" if entry.path in present else "is missing"
            raise UserError(
                f"{source.root / entry.path} {problem} since the run; restore it, or set --data.root to its folder."
            )
    return manifest


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


def load_checkpoint(
    path: Path,
    experiment: Experiment,
    manifest: Manifest,
    accelerator: Accelerator,
    terminal: Terminal,
    in_memory: InMemoryFeatures,
) -> LoadedCheckpoint:
    """Load a checkpoint and set it up with the data of its run.

    Args:
        path: The .safetensors file.
        experiment: The run's experiment.
        manifest: The run's images.
        accelerator: Device and processes.
        terminal: For progress.
        in_memory: Features in memory, shared by checkpoints of the same run.

    Raises:
        UserError: The checkpoint is damaged, or has other classes than the manifest.
    """
    loaded = checkpoint.load(path)
    if loaded.model.spec.classes != manifest.classes:
        raise UserError(f"{path.name} was trained on other classes than those in the run's manifest.")
    setup = assemble(experiment, manifest, loaded.model, accelerator, terminal, in_memory)
    return LoadedCheckpoint(path.stem, loaded.epoch, setup)
