"""Runs the frozen backbone with OpenVINO (`features.compile=openvino`), which is faster than PyTorch on many CPUs.

Its results have the same bits on any number of threads; they are not those of PyTorch, so that the features have keys
of their own. The package is loaded only if it is asked for. `openvino.convert_model` would report its use to Intel;
the frontend, which it wraps, reports nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from runner.utils.errors import UserError


def check_openvino(device: torch.device) -> None:
    """Raise `UserError` if OpenVINO cannot compute on a device."""
    if device.type != "cpu":
        raise UserError(
            "features.compile=openvino is for the CPU; leave it out, or set ACCELERATE_USE_CPU=true to compute there."
        )
    if not has_openvino():
        raise UserError(
            "features.compile=openvino needs the package openvino: .venv/bin/python -m pip install openvino, or leave"
            " the setting out."
        )


def has_openvino() -> bool:
    """Whether the package is installed."""
    return find_spec("openvino") is not None


def openvino_version() -> str:
    """Version of the package, which decides the last bits of results."""
    return version("openvino")


class _Traceable(nn.Module):
    """A function of a model's layers as a module, which is what torch traces."""

    def __init__(self, model: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.function = function

    def forward(self, values: Tensor) -> Tensor:
        return self.function(values)


def convert(
    model: nn.Module, function: Callable[[Tensor], Tensor], example: Tensor, bf16: bool
) -> Callable[[Tensor], Tensor]:
    """A function of a frozen model in evaluation mode, run by OpenVINO on the threads that torch has.

    Args:
        model: With the layers that `function` uses.
        function: To convert.
        example: Values for it; later ones must have the same shape and type.
        bf16: Compute in bfloat16, else in float32.

    Raises `UserError` if it cannot be converted.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        values = torch.zeros(example.shape, dtype=example.dtype)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of branches that depend on shapes, which are fixed
                traced = torch.jit.trace(_Traceable(model, function).eval(), values, check_trace=False)
            manager = FrontEndManager()  # these own what is converted, and must outlive it
            frontend = manager.load_by_framework("pytorch")
            decoder = TorchScriptPythonDecoder(traced)
            converted = frontend.convert(frontend.load(decoder))
            converted.reshape(list(values.shape))
            compiled: Any = openvino.Core().compile_model(
                converted,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
                    "INFERENCE_NUM_THREADS": torch.get_num_threads(),
                    "ENABLE_CPU_PINNING": False,  # other processes of the launch would be pinned to the same cores
                },
            )
        except Exception as error:
            lines = (line.strip() for line in str(error).splitlines())
            reason = next(filter(None, lines), type(error).__name__)
            raise UserError(
                f"OpenVINO failed on the frozen backbone ({reason}); leave features.compile=openvino out."
            ) from error

    def run(values: Tensor) -> Tensor:
        return torch.from_numpy(compiled(values.numpy(), share_inputs=True)[0])

    return run
