"""The frozen part of a network, run on chunks of one fixed size.

The last bits of a convolution or matrix product depend on the shape of the batch, and on what a compiler makes of
it. So every chunk has the same shape, and whether the convolutions are compiled is decided once an experiment:
a row is then the same number for number whoever computes it, next to whatever else, kept or not.
"""

from __future__ import annotations

import functools
import logging
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from runner.models.network import TransferModel
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.tensors import pad_rows, tensor_digest

WORTH_COMPILING = 4000 * 224**2
"""Pixels of all images of a data set from which on compiling pays: it takes 10 to 20 s and gains about a tenth."""


class FeatureExtractor:
    """The stages of a network's prefix as functions of chunks.

    Args:
        network: On the accelerator's device, its frozen weights final.
        accelerator: Device and precision.
        chunk: Images that go through at once.
        compiled: Run the first stage through `torch.compile`, with inductor's freezing on a CPU.
    """

    def __init__(self, model: TransferModel, accelerator: Accelerator, batch_size: int, compiled: bool) -> None:
        self.model = model
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.compiled = compiled
        self.frozen_stages = model.frozen_stages
        self._functions: dict[int, Callable[[Tensor], Tensor]] = {}

    def run_stage(self, values: Tensor, stage: int) -> Tensor:
        """What a stage makes of at most `chunk` images or rows, on the device, contiguous.

        Fewer than `chunk` are filled up with zeros. Raises `UserError` where compiling fails.
        """
        count = len(values)
        values = pad_rows(values.to(self.accelerator.device, non_blocking=True), self.batch_size)
        with _evaluating(self.model), torch.inference_mode(), self.accelerator.autocast():
            rows = self._function(stage)(values)[:count]
        # Copied outside inference mode: the tail could not learn from an inference tensor. In one memory layout,
        # kept or not: a later stage sums in the order of the layout.
        return rows.clone(memory_format=torch.contiguous_format)

    def __call__(self, images: Tensor) -> Tensor:
        """Rows of at most `chunk` images (n × 3 × h × w, uint8), on the device; the images, where nothing is frozen."""
        values = images.to(self.accelerator.device, non_blocking=True)
        for stage in range(len(self.frozen_stages)):
            values = self.run_stage(values, stage)
        return values

    def stage_shapes(self, images: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
        """Shape and type of each stage's rows of such images, or of an image where there is no stage."""
        values, shapes = images.to(self.accelerator.device), []
        with torch.inference_mode(), self.accelerator.autocast():
            for start, stop in self.frozen_stages:
                values = self.model.run(values, start, stop)
                shapes.append((values.shape[1:], values.dtype))
        return shapes or [(values.shape[1:], values.dtype)]

    def recipe(self, stage: int) -> dict[str, Any]:
        """What of network and computation decides the numbers of a stage's rows."""
        layers = list(self.model.layers())[: self.frozen_stages[stage][1]]
        device = self.accelerator.device.type
        return {
            "layers": [(name, str(layer)) for name, layer in layers],
            "weights": digest(
                [tensor_digest(value) for _, layer in layers for value in layer.state_dict().values()]
            ),
            "precision": self.accelerator.mixed_precision,
            "chunk": self.batch_size,
            "compiled": self.compiled,
            "device": _cuda() if device == "cuda" else _cpu(),
        }

    def _function(self, stage: int) -> Callable[[Tensor], Tensor]:
        if stage not in self._functions:
            start, stop = self.frozen_stages[stage]

            def function(values: Tensor) -> Tensor:
                return self.model.run(values, start, stop)

            self._functions[stage] = self._compile(function) if self.compiled and stage == 0 else function
        return self._functions[stage]

    def _compile(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        on_cpu = self.accelerator.device.type == "cpu"
        options: dict[str, Any] = {"freezing": True, "compile_threads": 1} if on_cpu else {}
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # of CUDA, where there is none
        compiled = torch.compile(function, dynamic=False, options=options)

        def guarded(values: Tensor) -> Tensor:
            try:
                return compiled(values)
            except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                reason = next(
                    (line for line in str(error).splitlines() if line.strip()), type(error).__name__
                )
                raise UserError(
                    f"torch.compile failed on the convolutions ({reason.strip()}); set features.compile=false."
                ) from error

        return guarded


def worth_compiling(images: int, crop: int, device: torch.device) -> bool:
    """Whether a data set is so large that compiling pays, and this machine can: on a CPU, with a C++ compiler."""
    return device.type == "cpu" and images * crop**2 >= WORTH_COMPILING and can_compile()


def can_compile() -> bool:
    """Whether a C++ compiler with OpenMP and Python's headers is here, which inductor needs on a CPU."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and _works(compiler)


@functools.cache
def _works(compiler: str) -> bool:
    words = ["-fopenmp", f"-I{sysconfig.get_path('include')}", "-include", "Python.h", "-include", "omp.h"]
    command = [compiler, *words, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60)  # noqa: S603 (torch's compiler, no shell)
        return done.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode: what is frozen is the same in either, but a compiler would compile it once for each."""
    training = network.training
    network.train(False)
    try:
        yield
    finally:
        network.train(training)


def _cpu() -> list[object]:
    """What of a processor chooses the kernels that compute."""
    return [
        torch.backends.cpu.get_cpu_capability(),
        torch.cpu._is_avx512_bf16_supported(),
        torch.cpu._is_amx_tile_supported(),
        torch.backends.mkldnn.is_available(),
    ]


def _cuda() -> list[object]:
    return [
        torch.cuda.get_device_name(),
        torch.backends.cudnn.version(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    ]
