"""What a model is trained and validated on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runner.features.sources import SplitFeatures


@dataclass(frozen=True)
class LabeledFeatures:
    """A split to train or validate on.

    Args:
        load: Features for an epoch (from 0).
        labels: Class indices, in the order of the split.
    """

    load: Callable[[int], SplitFeatures]
    labels: Sequence[int]


@dataclass(frozen=True)
class FitData:
    """What a model is trained on; `batch_size` is the inference batch size of validation."""

    train: LabeledFeatures
    val: LabeledFeatures
    batch_size: int
