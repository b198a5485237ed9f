"""Features: what the frozen prefix of the network makes of each (image, view), computed once.

The prefix has stages: the convolutions, whose rows serve every head, and what a head adds to them. Each stage keeps
its rows in stores of its own; a later stage's are made from the earlier one's. Rows are computed when first needed,
by all processes of a host side by side. With the store off, or nothing frozen, the same function runs on the same
chunks, batch by batch.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import PIL.features
import torch
import torchvision
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from runner.data.loader import ImageLoader
from runner.data.manifest import Entry, Manifest
from runner.data.transforms import EVALUATION_VIEW
from runner.features import eviction
from runner.features.extractor import FeatureExtractor
from runner.features.shard_store import ShardStore, ShardWriter
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest

FEATURES_VERSION = 2
"""Part of every store's key: raise it when decoding, views or normalisation change what they compute."""

ATTEMPTS = 4
"""Times that rows are computed again because their files were found damaged or gone."""

Wanted = Sequence[tuple[str, int]]
"""Splits and views."""
InMemoryFeatures: TypeAlias = OrderedDict[tuple[Path, str, int], Tensor]
"""Rows in memory, by store, split and view; the least recently used first."""


class SplitFeatures(Protocol):
    """The tail's input for one split and view."""

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """For each batch of places in the split a tensor of its rows, on the run's device."""


@dataclass
class CacheStats:
    """What features cost and saved, on this process's host. A hit is a row that was served without computing it."""

    served: int = 0
    misses: int = 0
    compute_seconds: float = 0.0
    """Spent on computing."""
    served_seconds: float = 0.0
    """Seconds that computing the rows would have taken, had each been computed whenever it was served."""

    def metrics(self) -> dict[str, float]:
        """For the run's records."""
        rate = {"features/images_per_second": self.misses / self.compute_seconds} if self.misses else {}
        return {
            "features/hits": max(0, self.served - self.misses),
            "features/misses": self.misses,
            "features/saved_seconds": max(0.0, self.served_seconds - self.compute_seconds),
            **rate,
        }


@dataclass(frozen=True)
class MissingFeatures:
    """What a run's features would take: images through the convolutions, rows to compute, and their bytes."""

    images: int
    features: int
    bytes: int


@dataclass(frozen=True)
class FeatureStorage:
    """Where rows are kept.

    Args:
        root: Folder of the stores.
        memory: Bytes of rows that are held in memory too, the least recently used views going first; a split and
            view that is larger is gathered from the memory map.
        cap: Bytes that all stores may take.
        held: The rows in memory; experiments that share a manifest may share them.
    """

    root: Path
    memory_bytes: float
    max_bytes: float
    in_memory: InMemoryFeatures = field(default_factory=OrderedDict)


@dataclass
class FeatureCache:
    """The rows of a manifest's images under one network.

    Args:
        manifest: The images.
        prefix: Computes the rows.
        loader: Gives the views.
        accelerator: Device and peers.
        kept: Where rows are kept; None computes rows whenever they are asked for.
        terminal: Shows progress.
    """

    manifest: Manifest
    extractor: FeatureExtractor
    loader: ImageLoader
    accelerator: Accelerator
    storage: FeatureStorage | None
    terminal: Terminal
    stats: CacheStats = field(default_factory=CacheStats)

    def __post_init__(self) -> None:
        self._stores: dict[tuple[int, str], ShardStore] = {}
        self._row: list[tuple[torch.Size, torch.dtype]] = []

    @property
    def _memory(self) -> InMemoryFeatures:
        return self.storage.in_memory if self.storage is not None else OrderedDict()

    @property
    def stored(self) -> bool:
        """Whether rows are kept: there is a prefix, and a folder to keep them in."""
        return self.storage is not None and bool(self.extractor.frozen_stages)

    def get(self, split: str, view: int) -> SplitFeatures:
        """The rows of a split in a view; what is missing is computed first (all processes must ask together).

        Raises `UserError` where the disk has no room for them, or an image can no longer be read.
        """
        entries = self.manifest.select(split)
        if not self.stored:
            return _StreamedFeatures(self, entries, view)
        keys = [_key(entry, view) for entry in entries]
        last = len(self.extractor.frozen_stages) - 1
        store = self._store(last, view)
        place = (store.folder, split, view)
        if place not in self._memory:
            self._fill(last, entries, view)
        self.stats.served += len(keys)
        self.stats.served_seconds += store.seconds(keys)
        return self._held(place, store, keys)

    def feature_shape(self) -> tuple[torch.Size, torch.dtype]:
        """Shape and type of a row, from one black image."""
        return self._row_shapes()[-1]

    def missing(self, wanted: Wanted) -> MissingFeatures:
        """What computing the missing rows of splits and views would take."""
        images = rows = size = 0
        for split, view in wanted:
            entries = list(self.manifest.select(split))
            if not self.stored:
                images += len(entries)
                continue
            for stage in reversed(range(len(self.extractor.frozen_stages))):
                store = self._store(stage, view)
                store.refresh()
                missing = store.missing([_key(entry, view) for entry in entries])
                entries = [entries[place] for place in missing]
                shape, dtype = self._row_shapes()[stage]
                rows += len(entries)
                size += len(entries) * shape.numel() * dtype.itemsize
            images += len(entries)
        return MissingFeatures(images, rows, size)

    def reserve_space(self, wanted: Wanted) -> MissingFeatures:
        """See that there is room for what computing splits and views will take, before any of it is computed.

        Raises `UserError` where there is not.
        """
        demand = self.missing(wanted)
        if self.storage is not None and self.accelerator.is_local_main_process:
            eviction.ensure_space(self.storage.root, demand.bytes, self.storage.max_bytes, self.terminal)
        return demand

    def disk_bytes(self) -> int:
        """Bytes on disk of the stores that were used."""
        present = (
            {store.folder: store.bytes for store in eviction.list_stores(self.storage.root)} if self.storage else {}
        )
        return sum(present.get(store.folder, 0) for store in self._stores.values())

    def _fill(self, stage: int, entries: Sequence[Entry], view: int) -> None:
        """See that a stage's store has the rows of `entries`, whole: all processes together."""
        store = self._store(stage, view)
        keys = [_key(entry, view) for entry in entries]
        for _ in range(ATTEMPTS):  # a file may prove damaged, or gone, to any process when it first reads it
            self._compute(stage, store, entries, keys, view)
            lacking = bool(store.verify(keys)) or bool(store.missing(keys))
            if not any(gather_object([lacking])):
                return
        raise UserError(
            f"Files of features in {store.folder} were damaged or removed {ATTEMPTS} times over; look after the disk,"
            " or set cache to another one."
        )

    def _compute(
        self, stage: int, store: ShardStore, entries: Sequence[Entry], keys: Sequence[str], view: int
    ) -> None:
        """Add what the store lacks of `keys`: the chunks are dealt out to the processes of this host."""
        host, lead = socket.gethostname(), self.accelerator.is_local_main_process
        with ExitStack() as stack:
            places = self._claim(store, keys, stack) if lead else None
            said = gather_object([(host, places)])
            here = [missing for name, missing in said if name == host]
            missing = next(places for places in here if places is not None)
            if any(places for _, places in said):
                began = time.monotonic()
                self._extract(stage, store, [entries[place] for place in missing], view, len(here))
                self.accelerator.wait_for_everyone()
                if stage == 0:
                    self.stats.misses += len(missing)
                    self.stats.compute_seconds += time.monotonic() - began
            store.refresh()

    def _claim(self, store: ShardStore, keys: Sequence[str], stack: ExitStack) -> list[int]:
        """The places of rows that this run has to compute; another one that computes them is waited for."""
        store.refresh()
        if missing := store.missing(keys):
            stack.enter_context(
                store.computing(
                    lambda: self.terminal.line(
                        f"another run computes features in {store.folder}; waiting for it, to share them"
                    )
                )
            )
            store.refresh()
            missing = store.missing(keys)
        return missing

    def _extract(self, stage: int, store: ShardStore, entries: Sequence[Entry], view: int, processes: int) -> None:
        """Compute this process's share of rows."""
        if stage:
            self._fill(stage - 1, entries, view)
        keys = [_key(entry, view) for entry in entries]
        step = self.extractor.batch_size
        chunks = [range(start, min(start + step, len(keys))) for start in range(0, len(keys), step)]
        own = chunks[self.accelerator.local_process_index :: processes]
        what = "extract features" if stage == 0 else f"features behind {self._layer(stage)}"
        with self.terminal.progress(what, len(keys)) as advance, ShardWriter(store, 1 / processes) as writer:
            for places, (values, cost) in zip(own, self._sources(stage, entries, view, own), strict=True):
                rows = self.extractor.run_stage(values, stage).cpu()
                writer.add([keys[place] for place in places], rows, cost)
                advance(min(len(places) * processes, len(keys)))

    def _sources(
        self, stage: int, entries: Sequence[Entry], view: int, chunks: Sequence[range]
    ) -> Iterator[tuple[Tensor, float]]:
        """What goes into a stage: views of the images or rows of the stage before, and the seconds those took."""
        if stage == 0:
            for images in self.loader.batches(entries, view, chunks):
                yield images, 0.0
            return
        store = self._store(stage - 1, view)
        for places in chunks:
            keys = [_key(entries[place], view) for place in places]
            yield store.read(keys), store.seconds(keys)

    def _held(self, key: tuple[Path, str, int], store: ShardStore, keys: Sequence[str]) -> SplitFeatures:
        """Rows from memory where they fit into it, else from the map."""
        assert self.storage is not None  # noqa: S101 (for types: rows are kept)
        device = self.accelerator.device
        if key not in self._memory:
            shape, dtype = self.feature_shape()
            if len(keys) * shape.numel() * dtype.itemsize > self.storage.memory_bytes:
                return _MappedFeatures(store, keys, device)
            self._memory[key] = store.read(keys)
            while sum(rows.nbytes for rows in self._memory.values()) > self.storage.memory_bytes:
                self._memory.popitem(last=False)
        self._memory.move_to_end(key)
        return _InMemoryFeatures(self._memory[key], device)

    def _store(self, stage: int, view: int) -> ShardStore:
        recipe = self.loader.transform.recipe(view)
        name = (stage, digest(recipe))
        if name not in self._stores:
            assert self.storage is not None  # noqa: S101 (for types: rows are kept)
            self._stores[name] = ShardStore(
                self.storage.root,
                {"view": recipe, **self.extractor.recipe(stage), **_libraries()},
                {
                    "layer": f"{self.extractor.model.spec.arch} {self._layer(stage)}",
                    "view": self._view_words(view),
                    "computed": f"{self.accelerator.mixed_precision}{', compiled' * self.extractor.compiled}"
                    f", {self.accelerator.device.type}",
                },
                lambda path: self.terminal.warn(f"{path} is damaged; computing its rows again"),
            )
        return self._stores[name]

    def _layer(self, stage: int) -> str:
        """The last layer of a stage."""
        return self.extractor.model.layer_names[self.extractor.frozen_stages[stage][1] - 1]

    def _view_words(self, view: int) -> str:
        augment = self.loader.transform.augment
        return f"{'clean' if view == EVALUATION_VIEW else f'augmented, seed {self.loader.transform.seed}'}, {augment.crop} px"

    def _row_shapes(self) -> list[tuple[torch.Size, torch.dtype]]:
        """Shape and type of each stage's rows, or of an image where there is no stage."""
        if not self._row:
            crop = self.loader.transform.augment.crop
            self._row = self.extractor.stage_shapes(torch.zeros(1, 3, crop, crop, dtype=torch.uint8))
        return self._row


@dataclass(frozen=True)
class _InMemoryFeatures:
    """Rows gathered straight from memory."""

    matrix: Tensor
    device: torch.device

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for batch in batches:
            yield self.matrix[torch.as_tensor(batch, dtype=torch.long)].to(self.device)


@dataclass(frozen=True)
class _MappedFeatures:
    """Rows gathered from the files' memory maps."""

    store: ShardStore
    keys: Sequence[str]
    device: torch.device

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        empty = self.store.read(self.keys[:1])[:0]
        for batch in batches:
            keys = [self.keys[place] for place in batch]
            yield (self.store.read(keys) if keys else empty).to(self.device)


@dataclass(frozen=True)
class _StreamedFeatures:
    """Rows computed in passing. Chunks run across the bounds of batches: only the last one is filled up."""

    features: FeatureCache
    entries: Sequence[Entry]
    view: int

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        features, step = self.features, self.features.extractor.batch_size
        places = [place for batch in batches for place in batch]
        chunks = [places[start : start + step] for start in range(0, len(places), step)]
        incoming = features.loader.batches(self.entries, self.view, chunks) if chunks else iter(())
        waiting: list[Tensor] = []
        for batch in batches:
            while sum(map(len, waiting)) < len(batch):
                waiting.append(features.extractor(next(incoming)))
            rows = torch.cat(waiting) if waiting else features.extractor(_no_image(features))
            waiting = [rows[len(batch) :]]
            yield rows[: len(batch)]


def _no_image(features: FeatureCache) -> Tensor:
    crop = features.loader.transform.augment.crop
    return torch.zeros(0, 3, crop, crop, dtype=torch.uint8)


def _libraries() -> dict[str, Any]:
    """What decodes and computes."""
    return {
        "rows": FEATURES_VERSION,
        "pillow": [PIL.__version__, PIL.features.version("jpg")],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def _key(entry: Entry, view: int) -> str:
    return f"{entry.digest}:{view}"
