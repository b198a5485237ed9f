"""`runner export`: export a model to ONNX, and compare the file with the model in onnxruntime.

./launch.sh export [--model RUN|NAME@ALIAS|PATH] --onnx FILE
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import add_model_options
from runner.serving import onnx
from runner.serving.load import load_model
from runner.utils.atomic_files import atomic_write, output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal, format_bytes
from runner.utils.errors import UserError


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = CommandLineParser(prog="runner export", description="Export a model to ONNX.")
    add_model_options(parser)
    parser.add_argument("--onnx", metavar="FILE", type=Path, required=True, help="ONNX file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command. Raises `UserError` for mistakes in the command line and missing packages."""
    options = parse(argv)
    if missing := onnx.missing_packages():
        raise UserError(f"Export needs {' and '.join(missing)}; pip install -e '.[onnx]' installs them.")
    path = output_folder(str(options.onnx.expanduser().parent)) / options.onnx.name
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file such as {path / 'model.onnx'}.")

    terminal = Terminal()
    model = load_model(options.model, options.tracking, "cpu")
    terminal.line(f"{model.source}, {len(model.classes)} classes")
    with atomic_write(path) as partial:
        onnx.export_onnx(model, partial)
        difference = onnx.compare_onnx(model, partial)
    side = onnx.input_size(model)
    terminal.line(
        f"{path} ({format_bytes(path.stat().st_size)}): input images (n × 3 × {side} × {side}, uint8), output logits;"
        f" onnxruntime gives the same top 5 on {onnx.COMPARED_IMAGES} images, probabilities within {difference:.1e}"
    )
    return 0
