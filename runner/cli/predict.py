"""`runner predict`: classify images.

./launch.sh predict IMAGE|FOLDER|PATTERN… [--model RUN|NAME@ALIAS|PATH] [--top 5] [--lang zh] [--json|--csv]
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.options import (
    add_image_arguments,
    add_model_options,
    given_images,
    positive_integer,
    report_unreadable,
)
from runner.serving import class_names
from runner.serving.explanations import draw_explanations
from runner.serving.load import load_model_concurrently
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.text import printable, valid_unicode

if TYPE_CHECKING:
    from runner.serving.predictor import Prediction


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Raises `UserError`."""
    parser = CommandLineParser(prog="runner predict", description="Classify images.")
    add_image_arguments(parser)
    add_model_options(parser)
    parser.add_argument(
        "--top", type=positive_integer, default=5, metavar="N", help="classes to show per image; default: 5"
    )
    parser.add_argument(
        "--lang",
        metavar="LANGUAGE|CSV",
        help=f"language of the class names ({', '.join(class_names.languages())}), or a CSV file with the header"
        " class,name",
    )
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--json", action="store_true", help="write a JSON list to standard output, and nothing else"
    )
    output.add_argument(
        "--csv", action="store_true", help="write a CSV table to standard output, and nothing else"
    )
    parser.add_argument(
        "--explain",
        metavar="DIR",
        help="also draw the Grad-CAM of each image into this folder; images of several folders keep their folders",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run the command. Returns 0, or 1 if some of the files are not readable images.

    Raises `UserError` for mistakes in the command line, and if no file is a readable image.
    """
    options = parse(argv)
    terminal = Terminal(stderr=options.json or options.csv)
    paths = given_images(options.images, terminal)
    folder = output_folder(options.explain) if options.explain else None

    model = load_model_concurrently(options.model, options.tracking)
    names = class_names.translations(options.lang, model.classes) if options.lang else {}
    terminal.line(f"{model.source}, {len(model.classes)} classes")
    with terminal.progress("predict", len(paths)) as advance:
        predictions = model.predict(paths, options.top, advance)
    readable = [prediction for prediction in predictions if not prediction.error]
    if options.csv:
        _print_csv(readable, names)
    elif not options.json:
        _print_text(readable, names, terminal)
    pictures: dict[str, Path] = {}
    try:
        if folder and readable:
            images = [Path(prediction.path) for prediction in readable]
            pictures = draw_explanations(model, images, folder, terminal).pictures
            terminal.line(f"pictures in {folder}: {len(pictures)}")
    finally:  # a full disk does not lose the predictions
        if options.json:
            _print_json(readable, names, pictures)
    unreadable = {prediction.path: prediction.error for prediction in predictions if prediction.error}
    return report_unreadable(unreadable, len(predictions))


def _print_json(predictions: Sequence[Prediction], names: dict[str, str], pictures: dict[str, Path]) -> None:
    """A list of `Prediction.as_dict`. With `--lang` each class has its `name` in that language too, and with
    `--explain` each image the path of its `picture`."""
    rows = [prediction.as_dict() for prediction in predictions]
    for row in rows:
        for item in row["top"] if names else ():
            item["name"] = names[item["class"]]
        if row["path"] in pictures:
            row["picture"] = valid_unicode(str(pictures[row["path"]]))
        row["path"] = valid_unicode(row["path"])
    print(json.dumps(rows, ensure_ascii=False))


def _print_csv(predictions: Sequence[Prediction], names: dict[str, str]) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "rank", "class", "probability"])
    for prediction in predictions:
        writer.writerows(
            [valid_unicode(prediction.path), rank, names.get(item.name, item.name), f"{item.probability:.6f}"]
            for rank, item in enumerate(prediction.top, 1)
        )


def _print_text(predictions: Sequence[Prediction], names: dict[str, str], terminal: Terminal) -> None:
    for prediction in predictions:
        terminal.line(f"\n{printable(prediction.path)}", style="bold")
        for item in prediction.top:
            terminal.line(f"  {100 * item.probability:6.2f} %  {names.get(item.name, item.name)}")
