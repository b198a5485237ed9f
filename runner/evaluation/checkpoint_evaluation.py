"""A checkpoint evaluated on a split: its predictions, and what is needed to look into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from runner.config.schema import Experiment
from runner.data.images import Images
from runner.data.loader import ImageLoader
from runner.data.transforms import EVALUATION_VIEW
from runner.evaluation.predictions import Predictions
from runner.models.transfer_model import TransferModel


@dataclass(frozen=True)
class CheckpointEvaluation:
    """A checkpoint's predictions on a split. `training.restore` makes one from a run's files."""

    checkpoint: str
    """`best` or `last`."""
    epoch: int
    split: str
    experiment: Experiment
    network: TransferModel
    loader: ImageLoader
    entries: Images
    """The split."""
    predictions: Predictions
    """Of the split, in the order of `entries`."""

    def images(self, indices: Sequence[int]) -> Tensor:
        """Images of the split as the model sees them: n × 3 × height × width, uint8.

        Args:
            indices: Their n ≥ 1 indices in the split.
        """
        chosen = [self.entries[index] for index in indices]
        return next(iter(self.loader.batches(chosen, EVALUATION_VIEW, [range(len(chosen))])))
