"""Features: what the frozen prefix of the network makes of each (image, view), computed once.

Rows are computed when first needed, by all processes of a host side by side, in chunks of one fixed size: a
row must not depend on the batch that it is in. With the store off, or nothing frozen, the same function runs on
the same chunks, batch by batch.
"""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import PIL.features
import torch
import torchvision
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from runner.errors import UserError
from runner.files import free_bytes
from runner.keys import digest, digest_bytes
from runner.loading import Loader
from runner.manifest import Entry, Manifest
from runner.network import Network
from runner.store import Store
from runner.terminal import Terminal, size

ROWS_VERSION = 1
"""Part of every store's key: raise it when decoding, views or normalisation change what they compute."""
MEMORY = 4 * 2**30
"""Bytes of rows that are held in memory; the least recently used views go first."""


class Rows(Protocol):
    """The tail's input for one split and view."""

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """For each batch of places in the split a tensor of its rows, on the run's device."""


@dataclass
class Account:
    """What features cost and saved, on this process's host."""

    hits: int = 0
    misses: int = 0
    seconds: float = 0.0

    def metrics(self) -> dict[str, float]:
        """For the run's records."""
        rate = (
            {"features/images_per_second": self.misses / self.seconds} if self.seconds and self.misses else {}
        )
        return {"features/hits": self.hits, "features/misses": self.misses, **rate}


@dataclass
class Features:
    """The rows of a manifest's images under one network.

    Args:
        manifest: The images.
        network: Its prefix computes the rows; on the accelerator's device, its frozen weights final.
        loader: Gives the views.
        accelerator: Device, precision and peers.
        chunk: Images that go through the network at once.
        root: Folder of the stores; None computes rows whenever they are asked for.
        terminal: Shows progress.
    """

    manifest: Manifest
    network: Network
    loader: Loader
    accelerator: Accelerator
    chunk: int
    root: Path | None
    terminal: Terminal
    account: Account = field(default_factory=Account)

    def __post_init__(self) -> None:
        self._memory: OrderedDict[tuple[str, int], Tensor] = OrderedDict()
        self._stores: dict[str, Store] = {}

    @property
    def stored(self) -> bool:
        """Whether rows are kept: there is a prefix, and a folder to keep them in."""
        return self.root is not None and self.network.cut > 0

    def rows(self, split: str, view: int) -> Rows:
        """The rows of a split in a view; what is missing is computed first (all processes must ask together).

        Raises `UserError` where the disk has no room for them, or an image can no longer be read.
        """
        entries = self.manifest.select(split)
        if not self.stored:
            return _StreamedRows(self, entries, view)
        if (split, view) not in self._memory:
            keys = [_key(entry, view) for entry in entries]
            store = self._store(view)
            self._compute(store, keys, entries, view)
            self._remember((split, view), store.read(keys))
        self._memory.move_to_end((split, view))
        return _StoredRows(self._memory[split, view], self.accelerator.device)

    def prefix(self, images: Tensor) -> Tensor:
        """Rows of at most `chunk` images (n × 3 × h × w, uint8, anywhere), on the device.

        Fewer than `chunk` are filled up: the shape decides how a library sums, and so the last bits of a row.
        """
        count = len(images)
        images = images.to(self.accelerator.device, non_blocking=True)
        if not self.network.cut:
            return images
        with torch.no_grad(), self.accelerator.autocast():
            return self.network.prefix(filled(images, self.chunk))[:count]

    def row_shape(self) -> tuple[torch.Size, torch.dtype]:
        """Shape and type of one row, from one black image."""
        crop = self.loader.renderer.views.crop
        row = self.prefix(torch.zeros(1, 3, crop, crop, dtype=torch.uint8))
        return row.shape[1:], row.dtype

    def missing(self, split: str, view: int) -> int:
        """How many rows of a split and view would have to be computed."""
        entries = self.manifest.select(split)
        if not self.stored:
            return len(entries)
        store = self._store(view)
        store.refresh()
        return len(store.missing([_key(entry, view) for entry in entries]))

    def _compute(self, store: Store, keys: list[str], entries: Sequence[Entry], view: int) -> None:
        """Fill the store with what it lacks of `keys`: the chunks are dealt out to the processes of this host."""
        store.refresh()
        host = socket.gethostname()
        lead = self.accelerator.local_process_index == 0
        said = gather_object([(host, store.missing(keys) if lead else None)])
        mine = [missing for name, missing in said if name == host]
        missing = next(places for places in mine if places is not None)
        self.account.hits += len(keys) - len(missing)
        if not any(places for _, places in said):
            return
        began = time.monotonic()
        self._check_room(store, len(missing))
        chunks = [missing[start : start + self.chunk] for start in range(0, len(missing), self.chunk)]
        own = chunks[self.accelerator.local_process_index :: len(mine)]
        with self.terminal.progress("extract features", len(missing)) as advance:
            for places, images in zip(own, self.loader.batches(entries, view, own), strict=True):
                store.write([keys[place] for place in places], self.prefix(images).cpu())
                advance(min(len(places) * len(mine), len(missing)))
        self.accelerator.wait_for_everyone()
        store.refresh()
        self.account.misses += len(missing)
        self.account.seconds += time.monotonic() - began

    def _check_room(self, store: Store, count: int) -> None:
        shape, dtype = self.row_shape()
        needed, free = count * shape.numel() * dtype.itemsize, free_bytes(store.folder)
        if needed > free:
            raise UserError(
                f"The features of {count:,} images need {size(needed)}, but {store.folder} has {size(free)} left;"
                " free some space, set cache to another disk, or set features.store=off."
            )

    def _remember(self, key: tuple[str, int], rows: Tensor) -> None:
        self._memory[key] = rows
        while len(self._memory) > 1 and sum(each.nbytes for each in self._memory.values()) > MEMORY:
            self._memory.popitem(last=False)

    def _store(self, view: int) -> Store:
        recipe = self.loader.renderer.recipe(view)
        name = digest(recipe)
        if name not in self._stores:
            assert self.root is not None
            self._stores[name] = Store(self.root, {"view": recipe, **self._prefix_recipe()})
        return self._stores[name]

    def _prefix_recipe(self) -> dict[str, Any]:
        """What beside the view decides a row's numbers: weights, structure, precision, chunk, libraries, device."""
        layers = [
            (name, layer)
            for place, (name, layer) in enumerate(self.network.layers())
            if place < self.network.cut
        ]
        device = self.accelerator.device.type
        return {
            "layers": [(name, str(layer)) for name, layer in layers],
            "weights": digest(
                [fingerprint(value) for _, layer in layers for value in layer.state_dict().values()]
            ),
            "precision": self.accelerator.mixed_precision,
            "chunk": self.chunk,
            "rows": ROWS_VERSION,
            "pillow": [PIL.__version__, PIL.features.version("jpg")],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "device": torch.cuda.get_device_name()
            if device == "cuda"
            else torch.backends.cpu.get_cpu_capability(),
        }


@dataclass(frozen=True)
class _StoredRows:
    """Rows gathered straight from memory."""

    matrix: Tensor
    device: torch.device

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        for batch in batches:
            yield self.matrix[torch.as_tensor(batch, dtype=torch.long)].to(self.device)


@dataclass(frozen=True)
class _StreamedRows:
    """Rows computed in passing. Chunks run across the bounds of batches: only the last one is filled up."""

    features: Features
    entries: Sequence[Entry]
    view: int

    def batches(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        features = self.features
        places = [place for batch in batches for place in batch]
        chunks = [places[start : start + features.chunk] for start in range(0, len(places), features.chunk)]
        incoming = features.loader.batches(self.entries, self.view, chunks) if chunks else iter(())
        waiting: list[Tensor] = []
        for batch in batches:
            while sum(map(len, waiting)) < len(batch):
                waiting.append(features.prefix(next(incoming)))
            rows = torch.cat(waiting) if waiting else features.prefix(_no_image(features))
            waiting = [rows[len(batch) :]]
            yield rows[: len(batch)]


def _no_image(features: Features) -> Tensor:
    crop = features.loader.renderer.views.crop
    return torch.zeros(0, 3, crop, crop, dtype=torch.uint8)


def filled(values: Tensor, count: int) -> Tensor:
    """`values` with zeros appended up to `count` rows."""
    if len(values) >= count:
        return values
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])


def fingerprint(value: Tensor) -> str:
    """Digest of a tensor's numbers."""
    return digest_bytes(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _key(entry: Entry, view: int) -> str:
    return f"{entry.digest}:{view}"
