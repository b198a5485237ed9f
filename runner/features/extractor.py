"""Runs the frozen backbone on batches of one fixed size.

The last bits of a convolution or matrix product depend on the batch size and on the compiler. So every batch has the
same size, and whether to compile is decided once per experiment. Then a feature has the same bits no matter which
process computes it, in which batch, and whether it is cached.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from runner.models.transfer_model import Stage, TransferModel
from runner.portable.backbone import BACKBONES
from runner.portable.backbones.timm_networks import PREFIX
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.tensors import pad_rows, tensor_digest

StageInput: TypeAlias = Tensor | Sequence[Tensor]
"""Images, or outputs of other stages."""
DROP_PATH = re.compile(r"KeyedDropPath\(.*?\)")
MIN_PIXELS_TO_COMPILE = 4000 * 224**2
"""Pixels of a dataset from which compiling pays: it takes 10 to 20 s and saves about a tenth of the time."""


class FeatureExtractor:
    """The stages of a model's frozen backbone, as functions of batches.

    Args:
        model: On the accelerator's device, with its final frozen weights.
        accelerator: Device and precision.
        batch_size: Images per forward pass.
        compiled: Run the first stage through `torch.compile`; on a CPU with inductor's freezing.
        cut: The number of layers that are frozen in another stage of training, too, whose features are needed as
            well: what follows starts from them. 0: none.
    """

    def __init__(
        self, model: TransferModel, accelerator: Accelerator, batch_size: int, compiled: bool, cut: int = 0
    ) -> None:
        self.model = model
        self.accelerator = accelerator
        self.batch_size = batch_size
        self.compiled = compiled
        self.stages = model.frozen_stages
        self.cut = cut if self.stages and model.pools_last_only and cut < self.stages[0].stop else 0
        if self.cut:
            self.stages = _cut(self.stages, self.cut)
        self._functions: dict[int, Callable[[StageInput], Tensor]] = {}
        self._recipes: dict[int, dict[str, Any]] = {}

    def run_stage(self, values: StageInput, stage: int) -> Tensor:
        """A stage's output for at most `batch_size` images or outputs of other stages, on the device, contiguous.

        Smaller batches are padded with zeros. Raises `UserError` if compiling fails.
        """
        count = len(values) if isinstance(values, Tensor) else len(values[0])
        padded = self._padded(values) if isinstance(values, Tensor) else [*map(self._padded, values)]
        with _evaluation_mode(self.model), torch.inference_mode(), self.accelerator.autocast():
            features = self._function(stage)(padded)[:count]
        # Cloned outside inference mode: the head could not train on an inference tensor. Always in the same memory
        # layout, cached or not: the order in which a later stage sums depends on it.
        return features.clone(memory_format=torch.contiguous_format)

    def _padded(self, values: Tensor) -> Tensor:
        return pad_rows(values.to(self.accelerator.device, non_blocking=True), self.batch_size)

    def __call__(self, images: Tensor) -> Tensor:
        """Features of at most `batch_size` images (n × 3 × h × w, uint8), on the device.

        Without a frozen backbone these are the images themselves.
        """
        images = images.to(self.accelerator.device, non_blocking=True)
        return self._run_all(images, self.run_stage)[-1]

    def _run_all(self, images: Tensor, run: Callable[[StageInput, int], Tensor]) -> list[Tensor]:
        """The output of every stage for images; the images themselves if there is no stage."""
        outputs: dict[int, Tensor] = {}
        for stage in range(len(self.stages)):
            values = self.stage_input(stage, outputs) if self.stages[stage].inputs else images
            outputs[stage] = run(values, stage)
        return list(outputs.values()) or [images]

    def stage_input(self, stage: int, outputs: Mapping[int, Tensor]) -> StageInput:
        """What a stage takes of the outputs of other stages."""
        inputs = [outputs[index] for index in self.stages[stage].inputs]
        return inputs[0] if self.model.pools_last_only else inputs

    def stage_shapes(self, images: Tensor) -> list[tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of one image's output of each stage; of the image itself if there is no stage."""
        with torch.inference_mode(), self.accelerator.autocast():
            outputs = self._run_all(images.to(self.accelerator.device), self._run)
        return [(output.shape[1:], output.dtype) for output in outputs]

    def layer_name(self, stage: int) -> str:
        """Name of a stage's last layer."""
        return self.model.layer_names[self.stages[stage].stop - 1]

    def recipe(self, stage: int) -> dict[str, Any]:
        """Everything about model and computation that decides the values of a stage's output."""
        if stage not in self._recipes:
            layers = self._weight_digests[: self.stages[stage].stop]
            weights = [tensor for digests in layers for tensor in digests]
            self._recipes[stage] = {
                **self.computation(stage),
                "weights": digest(weights),
                "compiled": self.compiled,
            }
        return self._recipes[stage]

    def computation(self, stage: int) -> dict[str, Any]:
        """What a stage computes and on what, apart from its weights and from compiling."""
        model = self.model
        pooled = [] if model.pools_last_only else self.stages[stage].inputs
        maps = [[self.layer_name(index), self.stages[index].variant.recipe()] for index in pooled]
        layers = range(self.stages[stage].stop)
        return {
            **_network(model.spec.arch),
            "layers": [(model.layer_names[index], _frozen_text(model.layer_text(index))) for index in layers],
            **self.stages[stage].variant.recipe(),
            **({"maps": maps, "tta": model.variant_spec.tta} if maps else {}),
            **({"cut": self.cut} if self.cut and stage else {}),
            "precision": self.accelerator.mixed_precision,
            "batch_size": self.batch_size,
            "device": _cuda_kernels() if self.accelerator.device.type == "cuda" else _cpu_kernels(),
        }

    @functools.cached_property
    def _weight_digests(self) -> list[list[str]]:
        """Of the tensors of each frozen layer; computed once for all stages."""
        return [
            [tensor_digest(value.detach()) for value in self.model.layer_tensors(index).values()]
            for index in range(self.stages[-1].stop)
        ]

    def _function(self, stage: int) -> Callable[[StageInput], Tensor]:
        if stage not in self._functions:

            def function(values: StageInput) -> Tensor:
                return self._run(values, stage)

            compile_it = self.compiled and not self.stages[stage].inputs
            self._functions[stage] = self._compile(function) if compile_it else function
        return self._functions[stage]

    def _run(self, values: StageInput, stage: int) -> Tensor:
        part = self.stages[stage]
        if isinstance(values, Tensor) and not part.inputs and not self.model.pools_last_only:
            return self.model.variant_map(values, part.variant, part.stop)
        return self.model.run(values, part.start, part.stop)

    def _compile(self, function: Callable[[StageInput], Tensor]) -> Callable[[StageInput], Tensor]:
        on_cpu = self.accelerator.device.type == "cpu"
        options: dict[str, Any] = {"freezing": True, "compile_threads": 1} if on_cpu else {}
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it warns if there is no CUDA
        compiled = torch.compile(function, dynamic=False, options=options)

        def guarded(values: StageInput) -> Tensor:
            try:
                return compiled(values)
            except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.InductorError) as error:
                lines = (line.strip() for line in str(error).splitlines())
                reason = next(filter(None, lines), type(error).__name__)
                raise UserError(
                    f"torch.compile failed on the frozen backbone ({reason}); set features.compile=false."
                ) from error

        return guarded


def _frozen_text(text: str) -> str:
    """The text of a layer without stochastic depth, which does nothing in a frozen layer."""
    return DROP_PATH.sub("Identity()", text)


def _cut(stages: Sequence[Stage], layers: int) -> tuple[Stage, ...]:
    """The stages, with the first one in two parts: its first `layers` layers, and the others."""
    first, *others = stages
    moved = (replace(each, inputs=tuple(index + 1 for index in each.inputs)) for each in others)
    return (replace(first, stop=layers), replace(first, start=layers, inputs=(0,)), *moved)


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


def _network(arch: str) -> dict[str, str]:
    """What computes besides the layers' texts: two networks that are built differently may have the same ones.

    VGG's texts are complete.
    """
    if arch in BACKBONES:
        return {}
    if not arch.startswith(PREFIX):
        return {"arch": arch}
    return {"arch": arch.partition(".")[0], "timm": version("timm")}


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
