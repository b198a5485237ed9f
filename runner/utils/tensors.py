"""Tensors: their digests, padding, and writing them to disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from runner.utils.hashing import digest_bytes


def filled(values: Tensor, count: int) -> Tensor:
    """`values` with zeros appended up to `count` rows."""
    if len(values) >= count:
        return values
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])


def fingerprint(value: Tensor) -> str:
    """Digest of a tensor's numbers."""
    return digest_bytes(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def write(tensors: dict[str, Tensor], aside: Path, metadata: dict[str, str], path: Path) -> None:
    """Write a .safetensors file `aside` of what will be `path`.

    Raises OSError where the disk refuses, which safetensors hides in an error of its own.
    """
    try:
        save_file(tensors, aside, metadata)
    except SafetensorError as error:
        if refused := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(refused[1])
            raise OSError(number, os.strerror(number), str(path)) from None
        raise
