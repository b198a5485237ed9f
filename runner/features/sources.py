"""Where the features of a split come from: memory, the memory-mapped store, or the frozen backbone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from runner.data.images import Images
from runner.data.loader import Batches, ImageLoader
from runner.features.extractor import FeatureExtractor
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore


class SplitFeatures(Protocol):
    """The features of a split in one view: what the trainable part of a model takes as input."""

    def batches(self, batches: Batches) -> Iterator[Tensor]:
        """For each batch of indices in the split a tensor with its features, on the run's device."""


@dataclass(frozen=True)
class InMemorySource:
    """Features in memory.

    Args:
        rows: One row per image, also of other splits.
        indices: The row of each image of the split.
        device: The run's device.
    """

    rows: Tensor
    indices: np.ndarray
    device: torch.device

    def batches(self, batches: Batches) -> Iterator[Tensor]:
        for batch in batches:
            chosen = self.indices[np.asarray(batch, np.int64)]
            yield self.rows.index_select(0, torch.from_numpy(chosen)).to(self.device)


@dataclass(frozen=True)
class MappedSource:
    """Features read from a memory-mapped store; `keys` has one key per image of the split."""

    store: ShardStore
    keys: FeatureKeys
    device: torch.device

    def batches(self, batches: Batches) -> Iterator[Tensor]:
        empty = self.store.read(self.keys.take([0]))[:0]
        for batch in batches:
            yield (self.store.read(self.keys.take(batch)) if len(batch) else empty).to(self.device)


@dataclass(frozen=True)
class ComputedSource:
    """Features computed on demand from the images of a split.

    Batches of images cross the boundaries of the requested batches, so that only the last one is padded.
    """

    extractor: FeatureExtractor
    loader: ImageLoader
    entries: Images
    view: int

    def batches(self, batches: Batches) -> Iterator[Tensor]:
        size = self.extractor.batch_size
        indices = np.concatenate([(), *batches], dtype=np.int64, casting="unsafe")
        image_batches = [indices[start : start + size] for start in range(0, len(indices), size)]
        images = self.loader.batches(self.entries, self.view, image_batches) if image_batches else iter(())
        buffer: list[Tensor] = []
        for batch in batches:
            while sum(map(len, buffer)) < len(batch):
                buffer.append(self.extractor(next(images)))
            features = torch.cat(buffer) if buffer else self.extractor(self._no_images())
            buffer = [features[len(batch) :]]
            yield features[: len(batch)]

    def _no_images(self) -> Tensor:
        crop = self.loader.transform.augment.input_size
        return torch.zeros(0, 3, crop, crop, dtype=torch.uint8)
