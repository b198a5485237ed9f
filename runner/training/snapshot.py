"""Snapshots of a fit: all that going on from between two optimiser steps takes, in one small file each.

What is random is a function of seeds and position, so that there are no generators' states to keep. The frozen
layers are not in it; their digest is. The file bears a digest of all it holds, is written aside, flushed and renamed,
and its predecessor stays until it is whole.
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

from runner.utils.atomic_files import replacing
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.tensors import fingerprint, write
from runner.utils.text import brief

FORMAT = "vgg-runner-snapshot-1"


@dataclass(frozen=True)
class Snapshot:
    """A fit between two optimiser steps.

    Args:
        epoch: The epoch that it is in, from 0.
        batch: Batches of that epoch that are done; all of them: it was not validated yet.
        step: Optimiser steps taken.
        tensors: By name: `learned/…`, `optimizer/PLACE/…`, `best/…` and what else was added.
        about: JSON-like: optimiser's groups, schedule, sums, history, and what else was added.
    """

    epoch: int
    batch: int
    step: int
    tensors: dict[str, Tensor]
    about: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix/`, by the rest of their names."""
        start = f"{prefix}/"
        return {
            name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)
        }

    @property
    def finite(self) -> bool:
        """Whether what was learned is numbers."""
        return all(bool(torch.isfinite(value).all()) for value in self.part("learned").values())

    def save(self, folder: Path, keep: int) -> Path:
        """Write it into `folder`, and remove all but the newest `keep` up to it. Raises OSError."""
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.tensors.items()}
        about = json.dumps(
            {"epoch": self.epoch, "batch": self.batch, "step": self.step, "about": self.about},
            allow_nan=False,
        )
        path = folder / f"{self.epoch:06}-{self.batch:08}.safetensors"
        with replacing(path) as aside:
            write(tensors, aside, {"format": FORMAT, "about": about, "digest": _seal(tensors, about)}, path)
        known = paths(folder)
        # Those beyond it were damaged, and passed over.
        kept = [each for each in known if each <= path][:keep]
        for each in known:
            if each not in kept:
                each.unlink(missing_ok=True)
        return path


def paths(folder: Path) -> list[Path]:
    """The snapshots in a folder, the furthest first."""
    return sorted(folder.glob("[0-9]*-[0-9]*.safetensors"), reverse=True)


def load(path: Path) -> Snapshot:
    """Read a snapshot back. Raises ValueError, in half a sentence, where it is not whole."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
            if said.get("format") != FORMAT:
                raise ValueError(f"its format is {brief(said.get('format', 'none'), 50)}, not {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(brief(str(error), 300)) from None
    if said.get("digest") != _seal(tensors, said.get("about", "")):
        raise ValueError("its digest differs")
    try:
        told = json.loads(said["about"])
        return Snapshot(int(told["epoch"]), int(told["batch"]), int(told["step"]), tensors, told["about"])
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ValueError("it is of another version") from None


@contextmanager
def taking_up() -> Iterator[None]:
    """Within the block a whole snapshot is taken up. Raises `UserError` where its content is another version's."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        raise UserError(
            "The state of the run to go on from is not one that this version wrote"
            f" ({brief(str(error), 200)}); begin a new run."
        ) from None


def newest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The furthest whole snapshot in a folder, and what is wrong with those that are not whole."""
    faults: list[str] = []
    for path in paths(folder):
        try:
            return load(path), faults
        except ValueError as error:
            faults.append(f"{path} is damaged ({error})")
    return None, faults


def _seal(tensors: dict[str, Tensor], about: str) -> str:
    return digest(
        FORMAT, about, {name: (list(value.shape), fingerprint(value)) for name, value in tensors.items()}
    )
