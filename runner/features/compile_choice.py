"""Decides whether the frozen backbone is compiled, by trying it for some seconds where the extraction is long.

What it gains depends on network, processor and version: inductor's freezing has been 15 times slower (pytorch issue
190757), bf16 on AArch64 100 times (180447). A compiled backbone rounds differently, so that its features are others:
the measured speeds are kept beside the features, and runs that share a cache decide by the same ones.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from runner.features.extractor import FeatureExtractor, worth_compiling
from runner.models.transfer_model import TransferModel
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest

TIMED_BATCHES = 2
"""At most, after the first one, which warms up or compiles."""
MEASURED_SECONDS = 12.0
"""How long the batches of a measurement may take, without compiling."""
LEAST_GAIN = 1.03
"""How many times as fast the compiled backbone must be."""


@dataclass(frozen=True)
class BackboneSpeed:
    """Measured speed of one process, with and without compiling. It does not depend on the data set."""

    eager_ips: float
    """Images/s without compiling."""
    compiled_ips: float
    """Images/s compiled; 0 if compiling failed."""
    compile_seconds: float

    def is_faster_compiled(self, images: int) -> bool:
        """Whether compiling saves one process time for this many images."""
        if self.compiled_ips <= LEAST_GAIN * self.eager_ips:
            return False
        return images / self.compiled_ips + self.compile_seconds < images / self.eager_ips

    def __str__(self) -> str:
        if not self.compiled_ips:
            return "torch.compile failed"
        return (
            f"{self.compiled_ips / self.eager_ips:.2f} times as fast compiled ({self.compiled_ips:.1f} images/s against"
            f" {self.eager_ips:.1f}; compiling took {self.compile_seconds:.0f} s)"
        )


def should_compile(
    model: TransferModel,
    accelerator: Accelerator,
    batch_size: int,
    images: int,
    cache: Path,
    terminal: Terminal,
) -> bool:
    """Whether to compile the frozen backbone; the same on every process, each of which calls this function.

    It depends neither on the number of processes nor on their threads, so that launches that share a cache share
    features.

    Args:
        model: With its final frozen weights.
        accelerator: Device, precision and processes.
        batch_size: Images per forward pass.
        images: Number of all images of the dataset. Split and views must not matter: they share features.
        cache: Folder that keeps the measured speed.
        terminal: Shows it.
    """
    compiled = False
    if accelerator.is_main_process and _is_worth_trying(model, accelerator, images):
        path = _path(model, accelerator, batch_size, cache)
        speed = _read(path)
        is_new = speed is None
        if speed is None:
            speed = _measure(model, accelerator, batch_size)
            with suppress(OSError):  # then the next run measures again
                write_text(path, json.dumps(asdict(speed)))
        compiled = speed.is_faster_compiled(images)
        if is_new:
            terminal.line(f"{'compiles' if compiled else 'does not compile'} the frozen backbone: {speed}")
    return bool(broadcast_object_list([compiled])[0])


def known_choice(
    model: TransferModel, accelerator: Accelerator, batch_size: int, images: int, cache: Path
) -> bool | None:
    """What `should_compile` returns, as far as it is known without measuring; None if it would measure."""
    compiled: bool | None = False
    if accelerator.is_main_process and _is_worth_trying(model, accelerator, images):
        speed = _read(_path(model, accelerator, batch_size, cache))
        compiled = None if speed is None else speed.is_faster_compiled(images)
    known: bool | None = broadcast_object_list([compiled])[0]
    return known


def _is_worth_trying(model: TransferModel, accelerator: Accelerator, images: int) -> bool:
    return bool(model.frozen_stages) and worth_compiling(images, model.spec.input_size, accelerator.device)


def _measure(model: TransferModel, accelerator: Accelerator, batch_size: int) -> BackboneSpeed:
    model.to(accelerator.device)
    size = model.spec.input_size
    random = torch.Generator().manual_seed(0)  # the global one is the training's
    batch = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8, generator=random)
    # Smaller batches for a slow network. Its first image warms up.
    seconds = _batch_seconds(FeatureExtractor(model, accelerator, 1, compiled=False), batch[:1], 2)[1]
    batch = batch[: max(1, int(MEASURED_SECONDS / (1 + TIMED_BATCHES) / seconds))]

    count = len(batch)
    eager_ips = count / min(
        _batch_seconds(FeatureExtractor(model, accelerator, count, compiled=False), batch)[1:]
    )
    try:
        first, *others = _batch_seconds(FeatureExtractor(model, accelerator, count, compiled=True), batch)
    except UserError:
        return BackboneSpeed(eager_ips, 0.0, 0.0)
    return BackboneSpeed(eager_ips, count / min(others), max(0.0, first - min(others)))


def _batch_seconds(
    extractor: FeatureExtractor, batch: Tensor, batches: int = 1 + TIMED_BATCHES
) -> list[float]:
    """Seconds of each forward pass: at least two, and no more of them once they have taken `MEASURED_SECONDS`."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < batches and sum(times[1:]) + times[-1] < MEASURED_SECONDS):
        start = time.monotonic()
        extractor.run_stage(batch, 0)
        times.append(time.monotonic() - start)
    return times


def _read(path: Path) -> BackboneSpeed | None:
    """A speed that was kept; None if there is none, or if the file is damaged."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        speed = BackboneSpeed(
            **{name: float(value) for name, value in json.loads(path.read_text("utf-8")).items()}
        )
        if speed.eager_ips > 0 and all(
            math.isfinite(value) and value >= 0 for value in asdict(speed).values()
        ):
            return speed
    return None


def _path(model: TransferModel, accelerator: Accelerator, batch_size: int, cache: Path) -> Path:
    """File of the speed, named by layers, size, precision, processor and version."""
    computation = FeatureExtractor(model, accelerator, batch_size, compiled=False).computation(0)
    key = digest(computation, model.spec.input_size, torch.__version__)
    return cache / "compile" / f"{key}.json"
