"""The inference batch of `features.batch_size=auto`: smaller where a GPU's memory does not hold the usual one.

Features depend on it in their last bits. So what was found is kept beside them, and runs that share a cache use it.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from runner.features.extractor import FeatureExtractor
from runner.models.transfer_model import TransferModel
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest

ON_CPU, ON_GPU = 32, 256
"""Images per forward pass; on a GPU if they fit."""


def automatic_batch_size(
    model: TransferModel, accelerator: Accelerator, cache: Path, terminal: Terminal
) -> int:
    """Images per forward pass of the frozen backbone; the same on every process, each of which calls this function.

    Args:
        model: With its final frozen weights.
        accelerator: Device, precision and processes.
        cache: Folder that keeps what was found.
        terminal: Shows if it is less than usual.

    Raises `UserError` if not even one image fits.
    """
    if accelerator.device.type == "cpu":
        return ON_CPU
    if not model.frozen_stages:
        return ON_GPU
    path = _path(model, accelerator, cache)
    size: int | None = broadcast_object_list([_read(path)])[0]
    if size is None:
        size = min(gather_object([largest_that_fits(model, accelerator, ON_GPU)]))
        if not size:
            raise UserError(
                "The GPU has not enough memory for one image in the frozen backbone; see what else uses it"
                " (nvidia-smi), or compute on the CPU with ACCELERATE_USE_CPU=true."
            )
        if accelerator.is_main_process:
            with suppress(OSError):  # then the next run tries again
                write_text(path, json.dumps(size))
    if size < ON_GPU:
        terminal.line(
            f"features.batch_size is {size}: {ON_GPU} images did not fit into the GPU's memory ({path} keeps this)"
        )
    return size


def largest_that_fits(model: TransferModel, accelerator: Accelerator, size: int) -> int:
    """The first of `size`, `size // 2`, … images for which the device's memory is enough; 0 if it never is."""
    model.to(accelerator.device)
    side = model.spec.input_size
    while size:
        try:
            extractor = FeatureExtractor(model, accelerator, size, compiled=False)
            extractor(torch.zeros(size, 3, side, side, dtype=torch.uint8))
        except torch.OutOfMemoryError:
            size //= 2
        else:
            break
        finally:
            torch.cuda.empty_cache()
    return size


def _read(path: Path) -> int | None:
    """What was found before; None if nothing was, or if the file is damaged."""
    with suppress(OSError, ValueError):
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, int) and 0 < found <= ON_GPU:
            return found
    return None


def _path(model: TransferModel, accelerator: Accelerator, cache: Path) -> Path:
    """File of the batch size, named by layers, image size, precision and GPU."""
    extractor = FeatureExtractor(model, accelerator, ON_GPU, compiled=False)
    stages = [extractor.computation(stage) for stage in range(len(extractor.stages))]
    memory = torch.cuda.get_device_properties(accelerator.device).total_memory
    return cache / "batch_size" / f"{digest(stages, model.spec.input_size, memory, torch.__version__)}.json"
