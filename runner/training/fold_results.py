"""What a cross-validation learns from its runs together: out-of-fold predictions as one table, and pooled scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from runner.config.repeat import Repeat
from runner.config.schema import Experiment
from runner.data.images import SPLITS
from runner.data.manifest import Manifest
from runner.evaluation.out_of_fold import (
    FOLD_TAG,
    FoldPredictions,
    PooledScores,
    fold_table,
    mean_predictions,
    pool,
)
from runner.evaluation.predictions import Predictions
from runner.tracking.tracker import Tracker
from runner.utils.atomic_files import atomic_write
from runner.utils.console import Terminal

OPTIMISTIC = "The best epochs were chosen on the same images, so these scores are optimistic."
"""What must be known about validation folds."""


@dataclass(frozen=True)
class FoldStore:
    """The predictions of finished runs on their folds, on disk: a cross-validation that is resumed still has them.

    Args:
        folder: The state folder of the cross-validation's run.
    """

    folder: Path

    def save(self, label: str, predictions: Predictions) -> None:
        """Save the logits of a run, which are float32 as the model computes them."""
        with atomic_write(self._path(label)) as temporary, temporary.open("wb") as file:
            np.save(file, predictions.logits.astype(np.float32), allow_pickle=False)

    def load(self, label: str, manifest: Manifest) -> Predictions | None:
        """The predictions of a run with these images; None if they were not saved, or are damaged."""
        try:
            logits = np.load(self._path(label), allow_pickle=False)
            return Predictions.of_split(manifest, manifest.fold, torch.from_numpy(logits))
        except (OSError, ValueError, TypeError, EOFError):
            return None

    def _path(self, label: str) -> Path:
        return self.folder / f"{label.replace(' ', '-')}.npy"


@dataclass(frozen=True)
class OutOfFold:
    """The out-of-fold predictions of a cross-validation."""

    folds: Sequence[FoldPredictions]
    """By division and fold; with several training seeds the means of their probabilities."""
    pooled: PooledScores
    """Of the first division into folds."""
    left_out: int
    """Training images that are in no fold."""


def collect(
    runs: Iterable[tuple[Experiment, str]], manifests: Mapping[str, Manifest], store: FoldStore
) -> OutOfFold:
    """Collect the predictions of all runs.

    Args:
        runs: The experiment and the label of each.
        manifests: The images of each run, by its label.
        store: Has the predictions of each run.

    Raises `RuntimeError` unless each image is in one fold at most, once in each division.
    """
    labels: dict[tuple[int, int], list[str]] = {}
    for experiment, label in runs:
        labels.setdefault((experiment.seed.split, experiment.split.fold or 0), []).append(label)
    folds = []
    for (seed, fold), repeated in labels.items():
        loaded = [store.load(label, manifests[label]) for label in repeated]
        predictions = mean_predictions(each for each in loaded if each is not None)
        folds.append(FoldPredictions(seed, fold, predictions))
    first = [each for each in folds if each.split_seed == folds[0].split_seed]
    left_out = 0
    for seed in {seed for seed, _ in labels}:
        left_out = _count_left_out([manifests[names[0]] for (own, _), names in labels.items() if own == seed])
    return OutOfFold(folds, pool([each.predictions for each in first]), left_out)


def _count_left_out(manifests: Sequence[Manifest]) -> int:
    """The number of images that are trained on in all folds of a division.

    Raises `RuntimeError` if an image is in two folds.
    """
    splits = [manifest.entries.splits for manifest in manifests]
    times = sum((each == SPLITS.index(manifests[0].fold)).astype(np.int64) for each in splits)
    if np.max(times) > 1:
        raise RuntimeError(f"{int((times > 1).sum()):,} images are in more than one fold")
    return int(((times == 0) & (splits[0] == SPLITS.index("train"))).sum())


def report(result: OutOfFold, repeat: Repeat, fold: str, parent: Tracker, terminal: Terminal) -> None:
    """Log the table and the pooled scores to the cross-validation's run, and print the scores.

    Args:
        result: What to report.
        repeat: How often each fold was trained.
        fold: The split that a fold is.
        parent: The run.
        terminal: Prints.
    """
    parent.set_tags({FOLD_TAG: fold})
    parent.log_text("predictions.csv", fold_table(result.folds))
    parent.log_metrics(result.pooled.metrics())
    scores, intervals = result.pooled.scores, result.pooled.intervals
    rows = []
    for metric in scores.shown:
        interval = intervals.get(metric.name)
        bounds = [f"{value:.4f}" for value in (interval.low, interval.high)] if interval else ["", ""]
        rows.append((metric.label, f"{scores[metric.name]:.4f}", *bounds))
    terminal.table(
        f"Out-of-fold predictions of {scores.images:,} images together",
        ("", "value", "95 % CI from", "to"),
        rows,
    )
    for note in notes(result, repeat, fold):
        terminal.line(note)


def notes(result: OutOfFold, repeat: Repeat, fold: str) -> list[str]:
    """What must be known to read the pooled scores, as sentences."""
    said = []
    if repeat.count > 1 and repeat.over == "seed":
        said.append(
            f"They are of the mean probabilities over {repeat.count} training seeds, which is an ensemble."
        )
    if repeat.count > 1 and repeat.over != "seed":
        said.append("They are of the first division into folds.")
    if fold == "val":
        said.append(OPTIMISTIC)
    if result.left_out:
        said.append(
            f"{result.left_out:,} training images are in no fold, because they belong to images with a given split."
        )
    return said
