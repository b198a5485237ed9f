"""What a network said of each image of a split, and the table that keeps it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from runner.utils.errors import UserError

TOP_K = 5
"""`scores.TOP_K`, which cannot be imported without torch."""
COLUMNS = ("path", "digest", "true", "predicted", "probability", "true_probability", "rank")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of logits, n × classes; a row with a logit that is not finite becomes nan."""
    finite = np.isfinite(logits).all(axis=1, keepdims=True)
    shifted = np.where(finite, logits, 0.0)
    odds = np.exp(shifted - shifted.max(axis=1, keepdims=True))  # at most 1: nothing overflows
    return np.where(finite, odds / odds.sum(axis=1, keepdims=True), np.nan)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What a network said of the n images of a split, at least one, in the split's order.

    Raises `ValueError` where the parts do not fit together.
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
                f" shape {self.logits.shape} are not of the same images, of {len(self.classes)} classes"
            )
        if self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise ValueError(f"a label is not one of {len(self.classes)} classes")

    @cached_property
    def finite(self) -> np.ndarray:
        """Whether all logits of an image are numbers; where not, the network gave no answer: it is wrong."""
        return np.isfinite(self.logits).all(axis=1)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """n × classes; nan where the logits are not finite."""
        return softmax(self.logits)

    @cached_property
    def predicted(self) -> np.ndarray:
        """The n predicted class indices; the smaller of two with equal logits."""
        return self.logits.argmax(axis=1)

    @cached_property
    def ranks(self) -> np.ndarray:
        """How many classes come before the true one, int64: a larger logit, or an equal one of a smaller index.

        As `scores.judge` has it; its infinity, for logits that are not finite, is here the number of classes, or
        5 where that is more: in no top k either way.
        """
        true = np.take_along_axis(self.logits, self.labels[:, None], axis=1)
        places = np.arange(len(self.classes))
        before = (self.logits > true) | ((self.logits == true) & (places < self.labels[:, None]))
        return np.where(self.finite, before.sum(axis=1), max(len(self.classes), TOP_K))

    @cached_property
    def right(self) -> np.ndarray:
        """Whether the true class comes first."""
        return self.ranks == 0

    @cached_property
    def confidence(self) -> np.ndarray:
        """The probability of the predicted class."""
        return np.take_along_axis(self.probabilities, self.predicted[:, None], axis=1)[:, 0]

    @cached_property
    def true_probability(self) -> np.ndarray:
        """The probability of the true class."""
        return np.take_along_axis(self.probabilities, self.labels[:, None], axis=1)[:, 0]

    def as_csv(self) -> str:
        """A row an image, with a header: `COLUMNS`; classes by name, rank 0 is right."""
        text = io.StringIO()
        writer = csv.writer(text)  # lines end in \r\n (RFC 4180): so a name with \r or \n in it is quoted
        writer.writerow(COLUMNS)
        for place, (path, digest) in enumerate(zip(self.paths, self.digests, strict=True)):
            writer.writerow(
                [
                    path,
                    digest,
                    self.classes[self.labels[place]],
                    self.classes[self.predicted[place]],
                    f"{self.confidence[place]:.6f}",
                    f"{self.true_probability[place]:.6f}",
                    self.ranks[place],
                ]
            )
        return text.getvalue()


@dataclass(frozen=True)
class Prediction:
    """A row of the table: an image's true and predicted class, the latter's probability, the former's rank."""

    path: str
    digest: str
    true: str
    predicted: str
    probability: float
    rank: int

    @property
    def right(self) -> bool:
        """Whether the true class came first."""
        return self.rank == 0


def read_csv(text: str) -> list[Prediction]:
    """The table that `Outcomes.as_csv` wrote, its line ends untouched. Raises `UserError` for another's."""
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if tuple(header) != COLUMNS:
            raise ValueError(header)
        predictions = [
            Prediction(path, digest, true, predicted, float(probability), int(rank))
            for path, digest, true, predicted, probability, _, rank in rows
        ]
        if any(each.rank < 0 or each.probability < 0 or each.probability > 1 for each in predictions):
            raise ValueError("out of range")
    except (ValueError, csv.Error):
        raise UserError("The table of predictions is not one that the runner wrote.") from None
    return predictions
