"""`runner explain`: draw which regions of images support a class.

./launch.sh explain IMAGE|FOLDER|PATTERN… [--model …] [--method gradcam] [--layer features.29] [--target predicted]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from runner.cli.options import add_image_arguments, add_model_options, given_images, report_unreadable
from runner.explain.methods import METHODS
from runner.serving.explanations import PREDICTED, ExplanationSettings, draw_explanations
from runner.serving.load import load_model_concurrently
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.text import printable

MOST_NAMED = 5
"""Pictures that are named, with the predicted class; more are counted."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = CommandLineParser(
        prog="runner explain",
        description="Draw class activation maps: which regions of images support a class.",
    )
    add_image_arguments(parser)
    add_model_options(parser)
    parser.add_argument("--method", choices=tuple(METHODS), default="gradcam", help="default: gradcam")
    parser.add_argument(
        "--layer", default="", help="layer to explain; default: the last one whose outputs have positions"
    )
    parser.add_argument(
        "--target",
        default=PREDICTED,
        metavar="CLASS",
        help="class to explain: its name, predicted, or true (the name of the image's folder); default: predicted",
    )
    parser.add_argument("--out", default="explained", metavar="DIR", help="output folder; default: explained")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0, or 1 if some of the files are not readable images.

    Raises `UserError` for mistakes in the command line, and if no file is a readable image.
    """
    options = parse(argv)
    terminal = Terminal()
    paths = given_images(options.images, terminal)
    folder = output_folder(options.out)

    model = load_model_concurrently(options.model, options.tracking)
    terminal.line(f"{model.source}, {len(model.classes)} classes")
    settings = ExplanationSettings(options.method, options.layer, options.target)
    done = draw_explanations(model, paths, folder, terminal, settings)
    status = report_unreadable(done.unreadable, len(paths))
    if len(done.pictures) <= MOST_NAMED:
        for path, picture in done.pictures.items():
            terminal.line(f"{printable(str(picture))}: {done.titles[path]}")
    else:
        terminal.line(f"pictures in {folder}: {len(done.pictures)}")
    return status
