"""Predictions of a model on a split, and predictions.csv, the table that stores them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.evaluation.metrics import PREDICTED, RANK, TASK, TOP_K, Scores, compute_scores
from runner.utils.csv_text import to_csv
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from runner.data.manifest import Manifest

COLUMNS = ("path", "digest", "true", "predicted", "probability", "true_probability", "true_rank")
"""Header of predictions.csv. `true_rank` is the rank of the true class, from 1, as all ranks in tables are."""
FOLD_COLUMNS = ("fold", "split")
"""Further columns of the table of a cross-validation: the fold of each image; and, if there are several divisions into
folds, the seed of the division."""
FIRST_RANK = {"true_rank": 1, "rank": 0}
"""What the last column calls the first rank; earlier versions wrote `rank`, from 0."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """The logits of a model for the n ≥ 1 images of a split, in the order of the split.

    Raises:
        ValueError: The parts do not belong to the same images and classes.
    """

    paths: tuple[str, ...]
    digests: tuple[str, ...]
    labels: np.ndarray
    """n true class indices, int64."""
    logits: np.ndarray
    """n × classes, float64."""
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images = len(self.paths)
        fits = images > 0 and len(self.digests) == images and self.labels.shape == (images,)
        if not fits or self.logits.shape != (images, len(self.classes)):
            raise ValueError(
                f"{images} paths, {len(self.digests)} digests, labels of shape {self.labels.shape} and logits of"
                f" shape {self.logits.shape} do not belong to the same images and {len(self.classes)} classes"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(f"a label is not one of {len(self.classes)} classes")

    @classmethod
    def of_split(cls, manifest: Manifest, split: str, logits: Tensor) -> Predictions:
        """Combine the logits of a split (n × classes) with its images and classes."""
        entries = manifest.select(split)
        return cls(
            tuple(entry.path for entry in entries),
            tuple(entry.digest for entry in entries),
            manifest.labels(split),
            logits.double().cpu().numpy(),
            manifest.classes,
        )

    @cached_property
    def sample_results(self) -> Tensor:
        """n × 3, as `metrics.sample_results` returns them."""
        import torch

        return TASK.results(torch.from_numpy(self.logits), torch.from_numpy(self.labels))

    @cached_property
    def scores(self) -> Scores:
        """All metrics."""
        return compute_scores(self.sample_results, self.labels.tolist(), len(self.classes))

    @cached_property
    def finite(self) -> np.ndarray:
        """Whether all logits of an image are finite. If not, the image has no prediction and counts as wrong."""
        return np.isfinite(self.logits).all(axis=1)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """n × classes; NaN where the logits are not finite."""
        return TASK.activation(self.logits)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The n predicted class indices, int64; of equal logits the first."""
        return self.sample_results[:, PREDICTED].long().numpy()

    @cached_property
    def ranks(self) -> np.ndarray:
        """The rank of the true class from 0, int64; 0 is correct.

        An infinite rank becomes the number of classes, or 5 if that is more, so that it is in no top k.
        """
        ranks = self.sample_results[:, RANK].numpy()
        return np.where(self.finite, ranks, max(len(self.classes), TOP_K)).astype(np.int64)

    @cached_property
    def correct(self) -> np.ndarray:
        """Whether the true class ranks first."""
        return self.ranks == 0

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of the predicted class."""
        return np.take_along_axis(self.probabilities, self.predicted[:, None], axis=1)[:, 0]

    @cached_property
    def true_probability(self) -> np.ndarray:
        """The probability of the true class."""
        return np.take_along_axis(self.probabilities, self.labels[:, None], axis=1)[:, 0]

    def to_csv(self) -> str:
        """One row per image with the header `COLUMNS`; classes by name."""
        return to_csv(COLUMNS, self.rows())

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The cells of each row of the table."""
        for index, (path, digest) in enumerate(zip(self.paths, self.digests, strict=True)):
            yield (
                path,
                digest,
                self.classes[self.labels[index]],
                self.classes[self.predicted[index]],
                f"{self.confidence[index]:.6f}",
                f"{self.true_probability[index]:.6f}",
                self.ranks[index] + FIRST_RANK[COLUMNS[-1]],
            )


@dataclass(frozen=True)
class PredictionRow:
    """A row of predictions.csv."""

    path: str
    digest: str
    true: str
    predicted: str
    probability: float
    """Of the predicted class; NaN if the logits were not finite."""
    rank: int
    """Of the true class, from 1."""

    @property
    def correct(self) -> bool:
        """Whether the true class ranks first."""
        return self.rank == 1


def read_predictions(text: str) -> list[PredictionRow]:
    """Read predictions.csv.

    Args:
        text: The file's content with its line ends unchanged: a path may contain a line break. Of a table with several
            divisions into folds, the first division counts.

    Raises:
        UserError: The table was not written by `Predictions.to_csv`.
    """
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        header, more = header[: len(COLUMNS)], header[len(COLUMNS) :]
        if (
            header[:-1] != [*COLUMNS[:-1]]
            or header[-1] not in FIRST_RANK
            or more != [*FOLD_COLUMNS][: len(more)]
        ):
            raise ValueError(header)
        offset = 1 - FIRST_RANK[header[-1]]
        if len(more) == len(FOLD_COLUMNS):
            rows = [row for row in rows if row[-1] == rows[0][-1]]
        predictions = [
            PredictionRow(path, digest, true, predicted, float(probability), int(rank) + offset)
            for path, digest, true, predicted, probability, _, rank, *_ in rows
        ]
        if any(row.rank < 1 or row.probability < 0 or row.probability > 1 for row in predictions):
            raise ValueError("out of range")
    except (ValueError, csv.Error):
        raise UserError("The table of predictions was not written by the runner.") from None
    return predictions
