"""Snapshots: the state of a training between two optimizer steps, each in one small file, to resume from.

Random numbers are functions of seeds and position, so no generator's state is saved. Frozen layers are not saved
either, only their digest. A file has a digest of its content; it is replaced atomically, and earlier ones are removed
only after that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runner.utils.atomic_files import atomic_write
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.tensors import save_tensors, tensor_digest
from runner.utils.text import one_line

FORMAT = "vgg-runner-snapshot-2"


@dataclass(frozen=True)
class Snapshot:
    """The state of a training between two optimizer steps.

    Args:
        epoch: The current epoch, from 0.
        batch: Batches of that epoch that are done. If all are done, the epoch is not validated yet.
        step: Optimizer steps taken.
        tensors: By name: `trainable/NAME`, `optimizer/INDEX/NAME`, and those that callbacks save.
        values: JSON-like values: optimizer groups, schedule, sums, history, and those that callbacks save.
    """

    epoch: int
    batch: int
    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]

    def tensors_under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names start with `prefix/`, by the rest of their names."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)
        }

    @property
    def is_finite(self) -> bool:
        """Whether all trainable values are finite."""
        return all(bool(torch.isfinite(value).all()) for value in self.tensors_under("trainable").values())

    def save(self, folder: Path, keep: int) -> Path:
        """Write the snapshot into `folder`; of it and its predecessors only the newest `keep` stay. Raises OSError."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        content = {"epoch": self.epoch, "batch": self.batch, "step": self.step, "values": self.values}
        text = json.dumps(content, allow_nan=False)
        path = folder / f"{self.epoch:06}-{self.batch:08}.safetensors"
        with atomic_write(path) as temporary:
            metadata = {"format": FORMAT, "content": text, "digest": _content_digest(tensors, text)}
            save_tensors(tensors, temporary, metadata, path)
        existing = paths(folder)
        # Later ones are damaged: this training resumed from an earlier one.
        kept = [each for each in existing if each <= path][:keep]
        for each in existing:
            if each not in kept:
                each.unlink(missing_ok=True)
        return path


def paths(folder: Path) -> list[Path]:
    """The snapshots in a folder, the latest position in training first."""
    return sorted(folder.glob("[0-9]*-[0-9]*.safetensors"), reverse=True)


def load(path: Path) -> Snapshot:
    """Read a snapshot. Raises ValueError with a clause that says what is wrong with it."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                found = one_line(metadata.get("format", "none"), 50)
                raise ValueError(f"its format is {found}, not {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(one_line(str(error), 300)) from None
    if metadata.get("digest") != _content_digest(tensors, metadata.get("content", "")):
        raise ValueError("its digest differs")
    try:
        content = json.loads(metadata["content"])
        epoch, batch, step = (int(content[name]) for name in ("epoch", "batch", "step"))
        return Snapshot(epoch, batch, step, tensors, content["values"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("it was written by another version") from None


def load_newest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The latest undamaged snapshot in a folder, and a clause about each damaged one that was skipped."""
    problems: list[str] = []
    for path in paths(folder):
        try:
            return load(path), problems
        except ValueError as error:
            problems.append(f"{path} is damaged ({error})")
    return None, problems


@contextmanager
def restoring() -> Iterator[None]:
    """For restoring state from a snapshot. Raises `UserError` if its content is not what this version writes."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(
            "The snapshot to resume from was not written by this version of the runner"
            f" ({one_line(str(error), 200)}); start a new run."
        ) from None


def _content_digest(tensors: dict[str, Tensor], text: str) -> str:
    shapes = {name: (list(value.shape), tensor_digest(value)) for name, value in tensors.items()}
    return digest(FORMAT, text, shapes)
