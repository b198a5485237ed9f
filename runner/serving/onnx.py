"""Exports a model to ONNX and compares the file with the model in onnxruntime."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from runner.serving.predictor import LoadedModel

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # onnxruntime reads it when it is imported
REQUIREMENTS = ("onnx", "onnxruntime", "onnxscript")
COMPARED_IMAGES = 8
TOLERANCE = 1e-4
"""Maximum difference of a probability, from rounding."""


def missing_packages() -> list[str]:
    """The packages that export needs and that are not installed."""
    return [name for name in REQUIREMENTS if importlib.util.find_spec(name) is None]


def input_size(model: LoadedModel) -> int:
    """Height and width of the model's input, in pixels."""
    return int(model.classifier.description["transform"]["crop"])


def export_onnx(model: LoadedModel, path: Path) -> None:
    """Write a model as ONNX: images (n × 3 × crop × crop, uint8) in, logits (float32) out, for any n.

    The file's metadata has `classes` and `transform` as JSON.
    """
    import onnx
    import torch

    logger = logging.getLogger("torch.onnx")
    with contextlib.ExitStack() as quiet:
        quiet.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
        quiet.enter_context(contextlib.redirect_stdout(io.StringIO()))
        quiet.enter_context(warnings.catch_warnings(action="ignore"))
        program = torch.onnx.export(
            model.module,
            (_example_images(model, 2),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"values": {0: torch.export.Dim("images", min=1)}},
        )
    assert program is not None  # noqa: S101 (for mypy: it is None only with dynamo=False)
    proto = program.model_proto
    for name in ("classes", "transform"):
        entry = proto.metadata_props.add()
        entry.key = name
        entry.value = json.dumps(model.classifier.description[name], ensure_ascii=False)
    onnx.save_model(proto, os.fspath(path))


def compare_onnx(model: LoadedModel, path: Path) -> float:
    """Run a model and its ONNX file on the same images.

    Returns the largest difference of a probability.

    Raises:
        RuntimeError: The probabilities or the top-5 classes differ.
    """
    import numpy as np
    import onnxruntime
    import torch

    images = _example_images(model, COMPARED_IMAGES)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    exported_logits = torch.from_numpy(np.asarray(session.run(["logits"], {"images": images.numpy()})[0]))
    with torch.inference_mode():
        logits = model.module(images)
    probabilities, exported = logits.double().softmax(1), exported_logits.double().softmax(1)
    difference = float((probabilities - exported).abs().max())
    count = min(5, probabilities.shape[1])
    top = probabilities.sort(dim=1, descending=True)[0][:, :count]
    exported_top = probabilities.gather(1, exported.argsort(dim=1, descending=True))[:, :count]
    # Classes may change places only if their probabilities are equal up to rounding.
    if difference > TOLERANCE or float((top - exported_top).abs().max()) > TOLERANCE:
        raise RuntimeError(f"the ONNX file disagrees with the model: probabilities differ by {difference:g}")
    return difference


def _example_images(model: LoadedModel, count: int) -> Tensor:
    """Smooth noise in the model's input size (n × 3 × crop × crop, uint8), the same in every call."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    side = input_size(model)
    return (F.interpolate(coarse, size=(side, side), mode="bilinear") * 255).round().to(torch.uint8)
