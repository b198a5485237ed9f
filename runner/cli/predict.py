"""`runner predict`: what is in images.

./launch.sh predict IMAGE|FOLDER|GLOB… [--model RUN|NAME@ALIAS|CHECKPOINT] [--top 5] [--lang zh] [--json|--csv]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.serving import class_names
from runner.serving.load import load_model_concurrently
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.image_paths import find_images
from runner.utils.text import printable

if TYPE_CHECKING:
    from runner.serving.predictor import Prediction

PARTLY = 1
"""Exit status where some files were no images."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = CommandLineParser(prog="runner predict", description="Say what is in images.")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="an image, a folder, or a pattern")
    add_model(parser)
    parser.add_argument("--top", type=positive, default=5, help="classes to tell of each image; default: 5")
    parser.add_argument(
        "--lang",
        help=f"language of the class names: {', '.join(class_names.languages())}, or a CSV file: class,name",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="a JSON list on standard output, and nothing else"
    )
    output.add_argument("--csv", action="store_true", help="a CSV table on standard output, and nothing else")
    parser.add_argument("--explain", metavar="DIR", help="folder for a picture of each, with its Grad-CAM")
    return parser.parse_args(argv)


def add_model(parser: argparse.ArgumentParser) -> None:
    """The options that name a model."""
    parser.add_argument(
        "--model",
        metavar="RUN|NAME@ALIAS|CHECKPOINT",
        help="a run, a registered model, or a file; default: the newest finished run's",
    )
    parser.add_argument("--tracking.root", dest="tracking", default="mlruns", help="default: mlruns")


def positive(text: str) -> int:
    """A whole number from 1. Raises ArgumentTypeError."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, not {text!r}")
    return int(text)


def main(argv: Sequence[str]) -> int:
    """Predict as the command line says: 0, or 1 where some files were no images.

    Raises `UserError` for what its user can mend, and where no file was an image.
    """
    asked = parse(argv)
    paths = find_images(asked.images)
    folder = output_folder(asked.explain) if asked.explain else None

    terminal = Terminal(errors=asked.json or asked.csv)
    model = load_model_concurrently(asked.model, asked.tracking)
    called = class_names.translations(asked.lang, model.classes) if asked.lang else {}
    terminal.line(f"{model.source}, {len(model.classes)} classes")
    with terminal.progress("predict", len(paths)) as advance:
        predictions = model.predict(paths, asked.top, advance)
    good = [each for each in predictions if not each.error]
    faulty = [each for each in predictions if each.error]
    _say(good, called, asked, terminal)
    if folder and good:
        from runner.serving.pictures import pictures

        pictures(model, [Path(each.path) for each in good], folder, terminal)
        terminal.line(f"pictures in {folder}: {len(good)}")
    for each in faulty:
        print(f"runner: {printable(each.path)} {each.error}", file=sys.stderr)
    if not good:
        raise UserError(f"None of {len(faulty)} files is an image that can be read.")
    return PARTLY if faulty else 0


def _say(
    predictions: Sequence[Prediction], called: dict[str, str], asked: argparse.Namespace, terminal: Terminal
) -> None:
    def name(label: str) -> str:
        return called.get(label, label)

    if asked.json:
        told = [each.as_dict() for each in predictions]
        for row in told:
            for entry in row["top"]:
                if called:
                    entry["name"] = name(entry["class"])
        print(json.dumps(told, ensure_ascii=False))
        return
    if asked.csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["path", "rank", "class", "probability"])
        for each in predictions:
            writer.writerows(
                [each.path, rank, name(guess.name), f"{guess.probability:.6f}"]
                for rank, guess in enumerate(each.top, 1)
            )
        return
    for each in predictions:
        terminal.line(f"\n{printable(each.path)}", style="bold")
        for guess in each.top:
            terminal.line(f"  {100 * guess.probability:6.2f} %  {name(guess.name)}")
