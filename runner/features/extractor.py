"""Runs the frozen backbone on batches of one fixed size.

The last bits of a convolution or matrix product depend on the batch size and on the compiler. So every batch has the
same size, and whether to compile is decided once per experiment. Then a feature has the same bits no matter which
process computes it, in which batch, and whether it is cached.
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

from runner.models.transfer_model import TransferModel
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.tensors import pad_rows, tensor_digest

MIN_PIXELS_TO_COMPILE = 4000 * 224**2
"""Pixels of a dataset from which compiling pays: it takes 10 to 20 s and saves about a tenth of the time."""


class FeatureExtractor:
    """The stages of a model's frozen backbone, as functions of batches.

    Args:
        model: On the accelerator's device, with its final frozen weights.
        accelerator: Device and precision.
        batch_size: Images per forward pass.
        compiled: Run the first stage through `torch.compile`; on a CPU with inductor's freezing.
    """

    def __init__(
        self, model: TransferModel, accelerator: Accelerator, batch_size: int, compiled: bool
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.compiled = compiled
        self.stages = model.frozen_stages
        self._functions: dict[int, Callable[[Tensor], Tensor]] = {}
        self._recipes: dict[int, dict[str, Any]] = {}

    def run_stage(self, values: Tensor, stage: int) -> Tensor:
        """A stage's output for at most `batch_size` images or outputs of the stage before, on the device, contiguous.

        Smaller batches are padded with zeros. Raises `UserError` if compiling fails.
        """
        count = len(values)
        values = pad_rows(values.to(self.accelerator.device, non_blocking=True), self.batch_size)
        with _evaluation_mode(self.model), torch.inference_mode(), self.accelerator.autocast():
            features = self._function(stage)(values)[:count]
        # Cloned outside inference mode: the head could not train on an inference tensor. Always in the same memory
        # layout, cached or not: the order in which a later stage sums depends on it.
        return features.clone(memory_format=torch.contiguous_format)

    def __call__(self, images: Tensor) -> Tensor:
        """Features of at most `batch_size` images (n × 3 × h × w, uint8), on the device.

        Without a frozen backbone these are the images themselves.
        """
        values = images.to(self.accelerator.device, non_blocking=True)
        for stage in range(len(self.stages)):
            values = self.run_stage(values, stage)
        return values

    def stage_shapes(self, images: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of one image's output of each stage; of the image itself if there is no stage."""
        values, shapes = images.to(self.accelerator.device), []
        with torch.inference_mode(), self.accelerator.autocast():
            for start, stop in self.stages:
                values = self.model.run(values, start, stop)
                shapes.append((values.shape[1:], values.dtype))
        return shapes or [(values.shape[1:], values.dtype)]

    def layer_name(self, stage: int) -> str:
        """Name of a stage's last layer."""
        return self.model.layer_names[self.stages[stage][1] - 1]

    def recipe(self, stage: int) -> dict[str, Any]:
        """Everything about model and computation that decides the values of a stage's output."""
        if stage not in self._recipes:
            stop = self.stages[stage][1]
            layers = list(self.model.layers())[:stop]
            self._recipes[stage] = {
                "layers": [(name, str(layer)) for name, layer in layers],
                **({"mirrors": True} if self.model.mirrors else {}),
                "weights": digest([each for digests in self._weight_digests[:stop] for each in digests]),
                "precision": self.accelerator.mixed_precision,
                "batch_size": self.batch_size,
                "compiled": self.compiled,
                "device": _cuda_kernels() if self.accelerator.device.type == "cuda" else _cpu_kernels(),
            }
        return self._recipes[stage]

    @functools.cached_property
    def _weight_digests(self) -> list[list[str]]:
        """Of the tensors of each frozen layer; computed once for all stages."""
        layers = list(self.model.layers())[: self.stages[-1][1]]
        return [[tensor_digest(value) for value in layer.state_dict().values()] for _, layer in layers]

    def _function(self, stage: int) -> Callable[[Tensor], Tensor]:
        if stage not in self._functions:
            start, stop = self.stages[stage]

            def function(values: Tensor) -> Tensor:
                return self.model.run(values, start, stop)

            self._functions[stage] = self._compile(function) if self.compiled and stage == 0 else function
        return self._functions[stage]

    def _compile(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        on_cpu = self.accelerator.device.type == "cpu"
        options: dict[str, Any] = {"freezing": True, "compile_threads": 1} if on_cpu else {}
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns if there is no CUDA
        compiled = torch.compile(function, dynamic=False, options=options)

        def guarded(values: Tensor) -> Tensor:
            try:
                return compiled(values)
            except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                lines = (line.strip() for line in str(error).splitlines())
                reason = next(filter(None, lines), type(error).__name__)
                raise UserError(
                    f"torch.compile failed on the frozen backbone ({reason}); set features.compile=false."
                ) from error

        return guarded


def worth_compiling(images: int, crop: int, device: torch.device) -> bool:
    """Whether compiling pays for this many images of crop × crop pixels, and is possible: on a CPU with a compiler."""
    return device.type == "cpu" and images * crop**2 >= MIN_PIXELS_TO_COMPILE and can_compile()


def can_compile() -> bool:
    """Whether inductor can compile for the CPU: it needs a C++ compiler with OpenMP, and Python's headers."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    return compiler is not None and _compiles_openmp(compiler)


@functools.cache
def _compiles_openmp(compiler: str) -> bool:
    options = ["-fopenmp", f"-I{sysconfig.get_path('include')}", "-include", "Python.h", "-include", "omp.h"]
    command = [compiler, *options, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        process = subprocess.run(command, capture_output=True, timeout=60)  # noqa: S603 (torch's compiler, no shell)
        return process.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Frozen layers compute the same in either mode, but a compiler would compile them once for each."""
    training = model.training
    model.train(False)
    try:
        yield
    finally:
        model.train(training)


def _cpu_kernels() -> list[object]:
    """What about a CPU decides which kernels compute."""
    return [
        torch.backends.cpu.get_cpu_capability(),
        torch.cpu._is_avx512_bf16_supported(),
        torch.cpu._is_amx_tile_supported(),
        torch.backends.mkldnn.is_available(),
    ]


def _cuda_kernels() -> list[object]:
    return [
        torch.cuda.get_device_name(),
        torch.backends.cudnn.version(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    ]
