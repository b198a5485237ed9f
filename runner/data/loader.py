"""Decodes and transforms images in worker processes, in batches of a given order."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from runner.data.manifest import Entry
from runner.data.transforms import ViewTransform
from runner.portable.images import open_rgb
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes
from runner.utils.processes import cpu_count

MIN_IMAGES_FOR_WORKERS = 256
"""For fewer images `workers=auto` starts no processes: starting them would cost more than it saves."""
MAX_WORKERS = 16


@dataclass(frozen=True)
class ImageLoader:
    """Loads views of the images below a root folder.

    Args:
        root: The manifest's root.
        transform: Makes the views.
        workers: Processes that decode images; 0 decodes in this one, "auto" decides by CPU cores and images.
        ranks: Processes of this run on this host, which share the cores.
        pin: Put batches into pinned memory, for copies to a GPU.
    """

    root: Path
    transform: ViewTransform
    workers: int | str = "auto"
    ranks: int = 1
    pin: bool = False

    def batches(
        self, entries: Sequence[Entry], view: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """For each batch (indices into `entries`) a tensor n × 3 × crop × crop of uint8.

        Raises `UserError` if a file has changed or disappeared since the scan.
        """
        loader = DataLoader(
            _ViewDataset(self, entries, view),
            batch_sampler=batches,  # type: ignore[arg-type]  # any sized iterable of index lists
            num_workers=self._worker_count(sum(map(len, batches))),
            collate_fn=_collate,
            pin_memory=self.pin,
            worker_init_fn=_ignore_signals,
        )
        for batch in loader:
            if isinstance(batch, str):
                raise UserError(batch)
            yield batch

    def _worker_count(self, images: int) -> int:
        if self.workers != "auto":
            return int(self.workers)
        if images < MIN_IMAGES_FOR_WORKERS:
            return 0
        return max(1, min(MAX_WORKERS, cpu_count() // self.ranks))


def _ignore_signals(_worker: int) -> None:
    """A signal to the process group is handled by the parent, which stops its workers itself."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True)
class _ViewDataset(Dataset[Tensor | str]):
    """Views by index. An error is returned as its message: DataLoader would wrap an exception in a traceback."""

    loader: ImageLoader
    entries: Sequence[Entry]
    view: int

    def __getitem__(self, index: int) -> Tensor | str:
        entry = self.entries[index]
        path = self.loader.root / entry.path
        try:
            content = path.read_bytes()
            if digest_bytes(content) != entry.digest:
                return f"{path} has changed since it was verified; restore it or start again."
            return self.loader.transform(open_rgb(io.BytesIO(content)), entry.digest, self.view)
        except Exception as error:
            reason = " ".join(str(error).split())
            return f"{path} was readable before and is not now ({reason}); restore it or start again."


def _collate(views: list[Tensor | str]) -> Tensor | str:
    """The batch, or the first error message in it."""
    errors = (view for view in views if isinstance(view, str))
    return next(errors, None) or torch.stack(views)  # type: ignore[arg-type]  # all are tensors
