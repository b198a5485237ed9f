"""Decides whether the frozen backbone is compiled, by trying it for some seconds where the extraction is long.

What it gains depends on network, processor and version: inductor's freezing has been 15 times slower (pytorch issue
190757), bf16 on AArch64 100 times (180447). A compiled backbone rounds differently, so that its features are others:
the choice is kept beside the features, and runs that share a cache share it.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from runner.features.extractor import FeatureExtractor, worth_compiling
from runner.models.transfer_model import TransferModel
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest

TIMED_BATCHES = 2
LEAST_GAIN = 1.03
"""How many times as fast the compiled backbone must be."""


@dataclass(frozen=True)
class CompileChoice:
    """Whether to compile, and what was measured."""

    compiled: bool
    plain: float
    """Images/s of one process without compiling."""
    fast: float
    """Images/s compiled; 0 if compiling failed."""
    compile_seconds: float

    def __str__(self) -> str:
        if not self.fast:
            return "torch.compile failed"
        return (
            f"{self.fast / self.plain:.2f} times as fast compiled ({self.fast:.1f} images/s against {self.plain:.1f};"
            f" compiling took {self.compile_seconds:.0f} s)"
        )


def compiling_pays(
    model: TransferModel,
    accelerator: Accelerator,
    batch_size: int,
    images: int,
    cache: Path,
    terminal: Terminal,
) -> bool:
    """Whether to compile the frozen backbone; the same on every process, each of which calls this function.

    Args:
        model: With its final frozen weights.
        accelerator: Device, precision and processes.
        batch_size: Images per forward pass.
        images: Number of all images of the dataset. Split and views must not matter: they share features.
        cache: Folder that keeps the choice.
        terminal: Shows what was measured.
    """
    choice: CompileChoice | None = None
    if accelerator.is_main_process:
        size = model.spec.input_size
        if model.frozen_stages and worth_compiling(images, size, accelerator.device):
            path = cache / "compile" / f"{_key(model, accelerator, batch_size)}.json"
            if (choice := _read(path)) is None:
                choice = _measure(model, accelerator, batch_size, images)
                with suppress(OSError):  # then the next run measures again
                    write_text(path, json.dumps(asdict(choice)))
                verdict = "compiles" if choice.compiled else "does not compile"
                terminal.line(f"{verdict} the frozen backbone: {choice}")
    return bool(broadcast_object_list([choice is not None and choice.compiled])[0])


def _measure(model: TransferModel, accelerator: Accelerator, batch_size: int, images: int) -> CompileChoice:
    size = model.spec.input_size
    batch = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
    model.to(accelerator.device)

    def rate(extractor: FeatureExtractor) -> tuple[float, float]:
        """Images/s, and seconds of the first batch."""
        times = []
        for _ in range(1 + TIMED_BATCHES):
            start = time.monotonic()
            extractor.run_stage(batch, 0)
            times.append(time.monotonic() - start)
        return batch_size / min(times[1:]), times[0]

    plain, _ = rate(FeatureExtractor(model, accelerator, batch_size, compiled=False))
    try:
        fast, first = rate(FeatureExtractor(model, accelerator, batch_size, compiled=True))
    except UserError:
        return CompileChoice(False, plain, 0.0, 0.0)
    compile_seconds = max(0.0, first - batch_size / fast)
    share = images / accelerator.num_processes
    pays = fast > LEAST_GAIN * plain and share / fast + compile_seconds < share / plain
    return CompileChoice(pays, plain, fast, compile_seconds)


def _read(path: Path) -> CompileChoice | None:
    """A choice that was kept; None if there is none, or if the file is damaged."""
    with suppress(OSError, ValueError, TypeError):
        return CompileChoice(**json.loads(path.read_text(encoding="utf-8")))
    return None


def _key(model: TransferModel, accelerator: Accelerator, batch_size: int) -> str:
    """Digest of what the speed depends on: layers, size, precision, processor and version."""
    computation = FeatureExtractor(model, accelerator, batch_size, compiled=False).computation(0)
    return digest(computation, model.spec.input_size, torch.__version__, torch.get_num_threads())
