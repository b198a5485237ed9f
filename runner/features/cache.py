"""The feature cache: outputs of the frozen backbone for images and views, computed once and stored.

The frozen backbone has several stages: the convolutions, whose features serve every head, for each variant of an image;
and the layers that a kind of head adds to them. Each stage has its own stores; a later one is computed from what the
earlier ones stored. Features are computed when they are first needed. Without a store, the same functions compute the
same batches each time, so that the results are the same bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from runner.data.images import SPLITS, Images
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest
from runner.features import eviction
from runner.features.extractor import FeatureExtractor
from runner.features.in_memory import FeatureTable, InMemoryFeatures
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore
from runner.features.sources import ComputedSource, InMemorySource, MappedSource, SplitFeatures
from runner.features.stages import CacheStats, StoredStages, feature_keys
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes

SplitViews: TypeAlias = Sequence[tuple[str, int]]
"""Splits and views of them."""


@dataclass(frozen=True)
class FeatureStorage:
    """Where features are stored, and how much room they may take.

    Args:
        root: Folder of all stores.
        memory_bytes: Bytes of features in memory. The least recently used views are dropped; a split and view that is
            larger is read from the memory-mapped store.
        max_bytes: Bytes on disk that all stores together may take.
        in_memory: The features in memory. Experiments with the same manifest may share them.
        shared: Whether several hosts use the root; "auto" finds out.
    """

    root: Path
    memory_bytes: float
    max_bytes: float
    in_memory: InMemoryFeatures = field(default_factory=InMemoryFeatures)
    shared: Literal["auto"] | bool = "auto"


@dataclass(frozen=True)
class MissingFeatures:
    """Work to do."""

    images: int
    """To run through the stages that take images, each counted once for each of these."""
    features: int
    """To store, of all stages."""
    bytes: int
    """Of these features."""

    def __add__(self, other: MissingFeatures) -> MissingFeatures:
        return MissingFeatures(
            self.images + other.images, self.features + other.features, self.bytes + other.bytes
        )


NOTHING = MissingFeatures(0, 0, 0)


@dataclass
class FeatureCache:
    """The features of a manifest's images for one model.

    Args:
        manifest: The images.
        extractor: Computes the features.
        loader: Loads the images.
        accelerator: Device and other processes.
        storage: Where features are stored; None computes them each time.
        terminal: Shows progress.
    """

    manifest: Manifest
    extractor: FeatureExtractor
    loader: ImageLoader
    accelerator: Accelerator
    storage: FeatureStorage | None
    terminal: Terminal
    stats: CacheStats = field(default_factory=CacheStats)
    _rows: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, init=False)

    @property
    def stored(self) -> bool:
        """Whether features are stored: there is a frozen backbone, and somewhere to store them."""
        return self.storage is not None and bool(self.extractor.stages)

    def get(self, split: str, view: int) -> SplitFeatures:
        """The features of a split in a view. What is missing is computed first; every process calls this together.

        Raises `UserError` if the disk is full or an image can no longer be read.
        """
        if not self.stored:
            return ComputedSource(self.extractor, self.loader, self.manifest.select(split), view)
        last = len(self.extractor.stages) - 1
        rows, digests = self._rows_of(split)
        store, keys = self._stages.open(last, view), FeatureKeys(digests, view)
        indices, table = self._table(store, view, rows, digests)
        if table is None or not table.has(indices):
            self._stages.ensure(last, self.manifest.select(split), view, self.stats)
        self.stats.served += len(keys) * sum(not stage.inputs for stage in self.extractor.stages)
        self.stats.served_seconds += store.compute_seconds(keys)
        if table is None:
            return MappedSource(store, keys, self.accelerator.device)
        table.fill(indices, keys, store)
        self._storage.in_memory.shrink(self._storage.memory_bytes)
        return InMemorySource(table.rows, indices, self.accelerator.device)

    def at(self, extractor: FeatureExtractor) -> FeatureCache:
        """The features that another part of the same model computes of the same images, with the same statistics."""
        return dataclasses.replace(self, extractor=extractor)

    def of(self, manifest: Manifest) -> FeatureCache:
        """The features of another manifest's images, with the same stores, and statistics of their own."""
        other = dataclasses.replace(self, manifest=manifest, stats=CacheStats())
        if self.stored:
            other._stages = self._stages
        other._stage_shapes = self._stage_shapes
        return other

    def feature_shape(self) -> tuple[torch.Size, torch.dtype]:
        """Shape and dtype of one image's features."""
        return self._stage_shapes[-1]

    def missing(self, wanted: SplitViews) -> MissingFeatures:
        """What has to be computed for splits and views."""
        missing = NOTHING
        if self.stored:
            for split, view in wanted:
                missing += self._missing(len(self.extractor.stages) - 1, self.manifest.select(split), view)
        return missing

    def _missing(self, stage: int, entries: Images, view: int) -> MissingFeatures:
        """What has to be computed for a stage: what it has, it needs no input for.

        What another stage of training needs as well is not counted: it is counted there.
        """
        if self.extractor.cut and not self.extractor.stages[stage].inputs:
            return NOTHING
        store = self._stages.open(stage, view)
        store.refresh()
        entries = entries.take(store.missing(feature_keys(entries, view)))
        shape, dtype = self._stage_shapes[stage]
        inputs = self.extractor.stages[stage].inputs
        count = len(entries)
        missing = MissingFeatures(0 if inputs else count, count, count * shape.numel() * dtype.itemsize)
        for input_stage in inputs:
            missing += self._missing(input_stage, entries, view)
        return missing

    def reserve_space(self, wanted: SplitViews, beside: MissingFeatures = NOTHING) -> MissingFeatures:
        """Make room for what has to be computed for splits and views; every process calls this together.

        Args:
            wanted: Splits and views.
            beside: What other parts of the model have to compute as well.

        Returns the same on each: the most that any process has to compute where its cache is. Raises `UserError`, also
        on each, if there is not enough room for it, or if hosts do not share a cache that they must share.
        """
        problem = ""
        if self.stored and self._storage.shared is True:
            self._stages.hosts.require_one_cache(self._storage.root)
        missing = self.missing(wanted) + beside
        if self.storage is not None and self.accelerator.is_local_main_process:
            try:
                eviction.ensure_space(self.storage.root, missing.bytes, self.storage.max_bytes, self.terminal)
            except UserError as error:
                problem = str(error)
        gathered = gather_object([(missing, problem)])
        if problems := [problem for _, problem in gathered if problem]:
            raise UserError(problems[0])
        return max((missing for missing, _ in gathered), key=lambda work: (work.images, work.features))

    def folders(self) -> set[Path]:
        """Folders of the stores that were used."""
        return self._stages.folders() if self.stored else set()

    def _rows_of(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The indices of a split's images in the manifest, and their digests."""
        if split not in self._rows:
            rows = np.flatnonzero(self.manifest.entries.splits == SPLITS.index(split))
            self._rows[split] = rows, self.manifest.entries.digests[rows]
        return self._rows[split]

    def _table(
        self, store: ShardStore, view: int, rows: np.ndarray, digests: np.ndarray
    ) -> tuple[np.ndarray, FeatureTable | None]:
        """The table in memory for a split, and the split's rows in it: of all images if they fit into memory, else of
        the split; None if that does not fit either."""
        shape, dtype = self.feature_shape()
        size, limit = shape.numel() * dtype.itemsize, self._storage.memory_bytes
        images, images_digest = len(self.manifest.entries), self._images_digest
        if images * size > limit:
            images, images_digest, rows = len(rows), digest_bytes(digests.tobytes()), np.arange(len(rows))
        if images * size > limit:
            return rows, None
        key = (store.folder, view, images_digest)
        return rows, self._storage.in_memory.table(key, images, shape, dtype)

    @cached_property
    def _images_digest(self) -> str:
        """Of the images' contents, in their order."""
        return digest_bytes(self.manifest.entries.digests.tobytes())

    @property
    def _storage(self) -> FeatureStorage:
        assert self.storage is not None  # noqa: S101 (only used if features are stored)
        return self.storage

    @cached_property
    def _stages(self) -> StoredStages:
        return StoredStages(
            self._storage.root, self.extractor, self.loader, self.terminal, self._storage.shared
        )

    @cached_property
    def _stage_shapes(self) -> list[tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of one image's output of each stage, or of an image if there is no stage."""
        crop = self.loader.transform.augment.input_size
        return self.extractor.stage_shapes(torch.zeros(1, 3, crop, crop, dtype=torch.uint8))
