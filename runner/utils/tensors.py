"""Tensors: padding, digests and writing to disk."""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from runner.utils.hashing import digest_bytes


def pad_rows(values: Tensor, count: int) -> Tensor:
    """`values` with rows of zeros appended up to `count` rows."""
    if len(values) >= count:
        return values
    return torch.cat([values, values.new_zeros(count - len(values), *values.shape[1:])])


def float64_device(device: torch.device) -> torch.device:
    """Where float64 values from a device are computed: on it, or on the CPU if it has no float64, as Apple's MPS."""
    return torch.device("cpu") if device.type == "mps" else device


def tensor_digest(tensor: Tensor) -> str:
    """40 hexadecimal digits for a tensor's values."""
    return digest_bytes(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def save_tensors(tensors: dict[str, Tensor], temporary: Path, metadata: dict[str, str], path: Path) -> None:
    """Write the .safetensors file `temporary`, which is to become `path`.

    Raises OSError naming `path` if the disk refuses; safetensors itself raises an error of its own type.
    """
    try:
        save_file(tensors, temporary, metadata)
    except SafetensorError as error:
        if os_error := re.search(r"\(os error (\d+)\)", str(error)):
            number = int(os_error[1])
            raise OSError(number, os.strerror(number), str(path)) from None
        raise
