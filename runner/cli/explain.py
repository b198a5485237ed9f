"""`runner explain`: where in images a class is found.

./launch.sh explain IMAGE|FOLDER|GLOB… [--model …] [--method gradcam] [--layer features.29] [--target predicted]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runner.cli.predict import PARTLY, add_model
from runner.explain.methods import METHODS
from runner.serving.load import load_model_concurrently
from runner.serving.pictures import PREDICTED, pictures
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.image_paths import find_images
from runner.utils.text import printable

if TYPE_CHECKING:
    pass


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = CommandLineParser(prog="runner explain", description="Draw where in images a class is found.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image, a folder, or a pattern")
    add_model(parser)
    parser.add_argument("--method", choices=tuple(METHODS), default="gradcam", help="default: gradcam")
    parser.add_argument(
        "--layer", default="", help="whose output is looked at; default: the last convolution"
    )
    parser.add_argument(
        "--target",
        default=PREDICTED,
        help="predicted, true (the name of the image's folder), or a class; default: predicted",
    )
    parser.add_argument("--out", default="explained", metavar="DIR", help="default: explained")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Explain as the command line says: 0, or 1 where some files were no images.

    Raises `UserError` for what its user can mend, and where no file was an image.
    """
    asked = parse(argv)
    paths = find_images(asked.images)
    folder = output_folder(asked.out)

    terminal = Terminal()
    model = load_model_concurrently(asked.model, asked.tracking)
    terminal.line(f"{model.source}, {len(model.classes)} classes")
    faults = pictures(model, paths, folder, terminal, asked.method, asked.layer, asked.target)
    for path, fault in faults:
        print(f"runner: {printable(path)} {fault}", file=sys.stderr)
    if len(faults) == len(paths):
        raise UserError(f"None of {len(paths)} files is an image that can be read.")
    terminal.line(f"pictures in {folder}: {len(paths) - len(faults)}")
    return PARTLY if faults else 0
