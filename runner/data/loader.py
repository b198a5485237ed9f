"""Decode and augment images beside the network: batches of uint8 views, in the order asked for."""

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
from runner.data.transforms import Renderer
from runner.portable.pixels import open_rgb
from runner.utils.cpu import cores
from runner.utils.errors import UserError
from runner.utils.hashing import digest_bytes

FEW_IMAGES = 256
"""Under so many images `workers=auto` starts no processes: they would cost more than they save."""


@dataclass(frozen=True)
class Loader:
    """Reads views of the images under a root.

    Args:
        workers: Processes that decode; 0 decodes in this one, "auto" decides by the cores and the images.
        ranks: Processes of this run on this host, which share the cores.
        pin: Put batches in pinned memory, for copies to a GPU.
    """

    root: Path
    renderer: Renderer
    workers: int | str = "auto"
    ranks: int = 1
    pin: bool = False

    def batches(
        self, entries: Sequence[Entry], view: int, batches: Sequence[Sequence[int]]
    ) -> Iterator[Tensor]:
        """For each batch of places in `entries` a tensor n × 3 × crop × crop of uint8.

        Raises `UserError` where a file has changed or gone since it was verified.
        """
        loader = DataLoader(
            _Views(self.root, self.renderer, entries, view),
            batch_sampler=batches,  # type: ignore[arg-type]  # any sized iterable of index lists
            num_workers=self._workers(sum(map(len, batches))),
            collate_fn=_collate,
            pin_memory=self.pin,
            worker_init_fn=_leave_signals_to_parent,
        )
        for outcome in loader:
            if isinstance(outcome, str):
                raise UserError(outcome)
            yield outcome

    def _workers(self, images: int) -> int:
        if self.workers != "auto":
            return int(self.workers)
        if images < FEW_IMAGES:
            return 0
        return max(1, min(16, cores() // self.ranks))


def _leave_signals_to_parent(_worker: int) -> None:
    """A signal for the whole process group is the parent's to answer; it ends its workers itself."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)


class _Views(Dataset[Tensor | str]):
    """A failure is returned, not raised: the loader would bury it in a traceback of its own."""

    def __init__(self, root: Path, renderer: Renderer, entries: Sequence[Entry], view: int) -> None:
        self.root = root
        self.renderer = renderer
        self.entries = entries
        self.view = view

    def __getitem__(self, index: int) -> Tensor | str:
        entry = self.entries[index]
        path = self.root / entry.path
        try:
            content = path.read_bytes()
            if digest_bytes(content) != entry.digest:
                return f"{path} has changed since it was verified; put it back or start again."
            return self.renderer(open_rgb(io.BytesIO(content)), entry.digest, self.view)
        except Exception as error:
            return f"{path} was readable and now is not ({' '.join(str(error).split())}); put it back or start again."


def _collate(views: list[Tensor | str]) -> Tensor | str:
    tensors = [view for view in views if isinstance(view, Tensor)]
    if len(tensors) < len(views):
        return next(view for view in views if isinstance(view, str))
    return torch.stack(tensors)
