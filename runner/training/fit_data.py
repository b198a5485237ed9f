"""What a model is trained and validated on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from runner.features.sources import SplitFeatures
from runner.training.solvers.products import KeptProducts


@dataclass(frozen=True)
class LabeledFeatures:
    """A split to train or validate on.

    Args:
        load: Features for an epoch (from 0).
        labels: Class indices, int64, in the order of the split.
    """

    load: Callable[[int], SplitFeatures]
    labels: np.ndarray


@dataclass(frozen=True)
class FitData:
    """What a model is trained on.

    Args:
        train: Images to train on.
        val: Images to validate on.
        batch_size: The inference batch size of validation.
        products: Those of features that solvers of other trainings had; None: they are not kept.
    """

    train: LabeledFeatures
    val: LabeledFeatures
    batch_size: int
    products: KeptProducts | None = None
