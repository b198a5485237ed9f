"""Decodes and transforms images in worker processes, in batches of a given order."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from runner.data.files import ImageFiles
from runner.data.images import Entry
from runner.data.transforms import ViewTransform
from runner.data.workers import Loaded, has_shared_memory, load_in_processes, shared_bytes
from runner.portable.images import open_rgb
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes
from runner.utils.processes import cpu_count
from runner.utils.text import one_line, printable

Batches: TypeAlias = Sequence[Sequence[int] | np.ndarray]
"""The indices of each batch."""
MIN_IMAGES_FOR_WORKERS = 256
"""For fewer images `workers=auto` starts no processes: starting them would cost more than it saves."""
MAX_WORKERS = 16


@dataclass(frozen=True)
class ImageLoader:
    """Loads views of a dataset's images.

    Args:
        files: Reads them.
        transform: Makes the views.
        workers: Processes that decode images; 0 decodes in this one, "auto" decides by CPU cores and images.
        ranks: Processes of this run on this host, which share the cores.
        pin: Put batches into pinned memory, for copies to a GPU.
    """

    files: ImageFiles
    transform: ViewTransform
    workers: int | str = "auto"
    ranks: int = 1
    pin: bool = False

    def batches(self, entries: Sequence[Entry], view: int, batches: Batches) -> Iterator[Tensor]:
        """For each batch (indices into `entries`) a tensor n × 3 × crop × crop of uint8.

        Raises `UserError` if a file has changed or disappeared since the scan, or if a process dies or hangs.
        """
        if not batches:
            return
        workers = self.worker_count(sum(map(len, batches)))
        calls = (self._call(entries, view, batch) for batch in batches)
        if workers:
            loaded = load_in_processes(calls, workers, self._bytes(max(map(len, batches))), self._finish)
        else:
            loaded = (batch if isinstance(batch := call(), str) else self._finish(batch) for call in calls)
        for batch in loaded:
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch

    def _call(
        self, entries: Sequence[Entry], view: int, batch: Sequence[int] | np.ndarray
    ) -> Callable[[], Loaded]:
        chosen = [entries[index] for index in batch]
        files = [(entry.path, entry.digest) for entry in chosen]
        return partial(_load, self.files, self.transform, view, files)

    def _finish(self, batch: Tensor) -> Tensor:
        return batch.pin_memory() if self.pin else batch

    def lacks_shared_memory(self, images: int, batch_size: int) -> int:
        """Bytes of shared memory that batches of so many images need, if there is less: then they go through pipes."""
        size = shared_bytes(self.worker_count(images), self._bytes(batch_size))
        return 0 if has_shared_memory(size) else size

    def _bytes(self, images: int) -> int:
        return images * 3 * self.transform.augment.input_size**2

    def worker_count(self, images: int) -> int:
        """How many processes load so many images; 0: this one does."""
        if self.workers != "auto":
            return int(self.workers)
        if images < MIN_IMAGES_FOR_WORKERS:
            return 0
        return max(1, min(MAX_WORKERS, cpu_count() // self.ranks))


def _load(
    source: ImageFiles, transform: ViewTransform, view: int, files: Sequence[tuple[str, str]]
) -> Loaded:
    """Views of files with the given digests as one tensor, or the message of the first error."""
    views = []
    for path, digest in files:
        try:
            content = source.read(path)
            if digest_bytes(content) != digest:
                return f"{printable(source.shown(path))} has changed since it was verified; restore it or start again."
            views.append(transform(open_rgb(io.BytesIO(content), depth=transform.depth), digest, view))
        except Exception as error:
            shown, reason = printable(source.shown(path)), one_line(str(error), 300)
            return f"{shown} was readable before and is not now ({reason}); restore it or start again."
    return torch.stack(views)
