"""Out-of-fold predictions: for each image, those of models that were not trained on its fold.

The table of a cross-validation has the columns of predictions.csv, and the fold of each image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runner.evaluation.metrics import Scores, compute_scores
from runner.evaluation.predictions import COLUMNS, FOLD_COLUMNS, Predictions
from runner.evaluation.statistics import Interval, bootstrap_ranks
from runner.utils.csv_text import to_csv

FOLD_TAG = "runner.fold"
"""Tag of a cross-validation's run: the split that a fold is, test or val."""


@dataclass(frozen=True)
class FoldPredictions:
    """The predictions for the images of a fold."""

    split_seed: int
    """Seed of the division into folds."""
    fold: int
    predictions: Predictions


@dataclass(frozen=True)
class PooledScores:
    """The metrics of all out-of-fold predictions together, and 95 % intervals over images."""

    scores: Scores
    intervals: dict[str, Interval]

    def metrics(self) -> dict[str, float]:
        """As they are logged: `out_of_fold/top1`, `out_of_fold/top1_low`, …"""
        logged = self.scores.metrics("out_of_fold")
        for name, interval in self.intervals.items():
            logged |= {
                f"out_of_fold/{name}_low": interval.low,
                f"out_of_fold/{name}_high": interval.high,
            }
        return logged


def mean_predictions(repeated: Iterable[Predictions]) -> Predictions:
    """The predictions of several models for the same images, as one: with the mean of their probabilities.

    The logits of the mean are its logarithms. A single model's are left as they are. An image that is without a
    prediction in one of them has none. Raises ValueError if the images differ.
    """
    first, total, count = None, None, 0
    for predictions in repeated:
        count += 1
        if first is None or total is None:
            first, total = predictions, predictions.probabilities.copy()
        elif predictions.digests != first.digests or predictions.paths != first.paths:
            raise ValueError("the predictions are not of the same images")
        else:
            total += predictions.probabilities
    if first is None or total is None:
        raise ValueError("there are no predictions")
    if count == 1:
        return first
    logits = np.log(np.maximum(total / count, np.finfo(np.float64).tiny))
    return Predictions(first.paths, first.digests, first.labels, logits, first.classes)


def pool(folds: Sequence[Predictions]) -> PooledScores:
    """The metrics of the predictions of all folds together. Raises ValueError if an image is in two folds."""
    import torch

    paths = [path for fold in folds for path in fold.paths]
    if len(set(paths)) < len(paths):
        raise ValueError(f"{len(paths) - len(set(paths)):,} images are in more than one fold")
    labels = np.concatenate([fold.labels for fold in folds])
    ranks = np.concatenate([fold.ranks for fold in folds])
    classes = len(folds[0].classes)
    scores = compute_scores(torch.cat([fold.sample_results for fold in folds]), labels, classes)
    return PooledScores(scores, bootstrap_ranks(labels, ranks, classes))


def fold_table(folds: Sequence[FoldPredictions]) -> str:
    """The table of out-of-fold predictions, by division and fold, then by path.

    It has the column `split` if there are several divisions into folds; an image has a row in each of them.
    """
    several = len({each.split_seed for each in folds}) > 1
    header = (*COLUMNS, *FOLD_COLUMNS[: 2 if several else 1])

    def rows() -> Iterator[tuple[Any, ...]]:
        for each in folds:
            more = (each.fold, each.split_seed) if several else (each.fold,)
            yield from ((*row, *more) for row in each.predictions.rows())

    return to_csv(header, rows())
