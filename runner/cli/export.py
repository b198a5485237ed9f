"""`runner export`: a model as an ONNX file, checked in onnxruntime before it is handed out.

./launch.sh export [--model RUN|NAME@ALIAS|CHECKPOINT] --onnx FILE
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.predict import add_model
from runner.utils.atomic_files import atomic_write, output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal, format_bytes
from runner.utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from runner.serving.predictor import LoadedModel

NEEDED = ("onnx", "onnxruntime", "onnxscript")
CHECKED = 8
"""Images that both are asked about."""
CLOSE = 1e-4
"""Greatest difference of a probability that rounding may make."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = CommandLineParser(prog="runner export", description="Write a model as an ONNX file.")
    add_model(parser)
    parser.add_argument("--onnx", metavar="FILE", type=Path, required=True, help="the file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Export as the command line says. Raises `UserError` for what its user can mend."""
    asked = parse(argv)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"Export needs {' and '.join(missing)}; pip install -e '.[onnx]' installs them.")
    path = output_folder(str(asked.onnx.expanduser().parent)) / asked.onnx.name
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file, as {path / 'model.onnx'}.")

    from runner.serving.load import load_model

    terminal = Terminal()
    model = load_model(asked.model, asked.tracking, "cpu")
    terminal.line(f"{model.source}, {len(model.classes)} classes")
    with atomic_write(path) as aside:
        export(model, aside)
        worst = check(model, aside)
    terminal.line(
        f"{path} ({format_bytes(path.stat().st_size)}): images (n × 3 × {_crop(model)} × {_crop(model)}, uint8) in, logits out;"
        f" the same top 5 in onnxruntime on {CHECKED} images, probabilities within {worst:.1e}"
    )
    return 0


def export(model: LoadedModel, path: Path) -> None:
    """Write a model's network as ONNX: uint8 images of any number in, float32 logits out; its classes as metadata."""
    import onnx
    import torch

    images = _images(model, 2)
    quiet = logging.getLogger("torch.onnx")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                model.network,
                (images,),
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"values": {0: torch.export.Dim("images", min=1)}},
            )
    finally:
        quiet.setLevel(before)
    assert program is not None  # noqa: S101 (for types: torch says so)
    proto = program.model_proto
    about = model.classifier.about
    for name in ("classes", "transform"):
        entry = proto.metadata_props.add()
        entry.key, entry.value = name, json.dumps(about[name], ensure_ascii=False)
    onnx.save_model(proto, os.fspath(path))


def check(model: LoadedModel, path: Path) -> float:
    """Ask a model and its ONNX file about the same images: the greatest difference of a probability.

    Raises:
        RuntimeError: they disagree.
    """
    import numpy as np
    import onnxruntime
    import torch

    images = _images(model, CHECKED)
    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    theirs = torch.from_numpy(np.asarray(session.run(["logits"], {"images": images.numpy()})[0]))
    with torch.inference_mode():
        ours = model.network(images)
    wanted, given = ours.double().softmax(1), theirs.double().softmax(1)
    worst = float((wanted - given).abs().max())
    count = min(5, wanted.shape[1])
    ordered = wanted.sort(dim=1, descending=True)[0][:, :count]
    reordered = wanted.gather(1, given.argsort(dim=1, descending=True))[:, :count]
    # Classes may change places only where rounding decides between them.
    if worst > CLOSE or float((ordered - reordered).abs().max()) > CLOSE:
        raise RuntimeError(f"the ONNX file disagrees with the model: probabilities differ by {worst:g}")
    return worst


def _crop(model: LoadedModel) -> int:
    return int(model.classifier.about["transform"]["crop"])


def _images(model: LoadedModel, count: int) -> Tensor:
    """Smooth noise in the model's input size, the same each time."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    side = _crop(model)
    return (F.interpolate(coarse, size=(side, side), mode="bilinear") * 255).round().to(torch.uint8)
