"""Mixup and CutMix: each training image is mixed with another one of its batch, and its label likewise.

As torchvision's `v2.MixUp` and `v2.CutMix`: one share and one box for a batch, and the partner of an image is the one
before it in the batch. They are functions of seed and step, so that any number of processes mixes alike, and a resumed
training as an uninterrupted one. Where a frozen backbone is cached, its features are mixed (manifold mixup, Verma et
al., 2019), since images are not computed again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from runner.config.train_schema import TrainConfig
from runner.utils import hashing


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed.

    Args:
        share: Of an image itself; its partner has the rest.
        center: Of the box that CutMix takes from the partner, as fractions of height and width; None: mixup.
    """

    share: float
    center: tuple[float, float] | None = None

    def apply(self, values: Tensor, partners: Tensor) -> tuple[Tensor, float]:
        """Mixed values, and the share that they have of `values`.

        Args:
            values: n × …; images or maps (n × channels × height × width) for a box.
            partners: Of the same shape.
        """
        if self.center is None:
            mixed = values.float() * self.share + partners.float() * (1 - self.share)
            return mixed if values.dtype == torch.uint8 else mixed.to(values.dtype), self.share
        height, width = values.shape[-2:]
        top, bottom, left, right = self.box(height, width)
        mixed = values.clone()
        mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)

    def box(self, height: int, width: int) -> tuple[int, int, int, int]:
        """First and last row, first and last column of the box; the last ones are not in it."""
        assert self.center is not None  # noqa: S101 (for types)
        half = 0.5 * math.sqrt(1 - self.share)
        (row, column), tall, wide = self.center, int(half * height), int(half * width)
        row, column = int(row * height), int(column * width)
        return max(row - tall, 0), min(row + tall, height), max(column - wide, 0), min(column + wide, width)


def draw_mix(settings: TrainConfig, training_seed: int, step: int) -> Mix | None:
    """How the batch of an optimizer step, from 0, is mixed; None if batches are not."""
    if not (settings.mixup or settings.cutmix):
        return None
    random = np.random.Generator(np.random.PCG64(hashing.derive_seed("mix", training_seed, step)))
    cuts = bool(settings.cutmix) and (not settings.mixup or random.random() < 0.5)
    alpha = settings.cutmix if cuts else settings.mixup
    share = float(random.beta(alpha, alpha))
    return Mix(share, (float(random.random()), float(random.random())) if cuts else None)
