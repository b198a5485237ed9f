"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from runner.serving.explanations import is_picture
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.image_paths import expand_user, find_images
from runner.utils.paths import nearest_records
from runner.utils.text import printable

SOME_UNREADABLE = 1
"""Exit status if some of the given files are not readable images."""
LATEST_HELP = (
    "latest is the newest finished run, but of no study, --repeat or cross-validation (--split.folds)"
)
RUN_HELP = f"run: its id, the first characters of its id, its name, or latest; {LATEST_HELP}"
MOVED_IMAGES = {
    "data.root": "folder or archive of the images",
    "data.test": "folder or archive of the test images",
    "data.table": "table of labels",
}
JSON_HELP = "write one JSON object to standard output, and nothing else"


def add_tracking_root(parser: argparse.ArgumentParser) -> None:
    """`--tracking.root`, as `tracking` of the parsed options."""
    parser.add_argument(
        "--tracking.root",
        dest="tracking",
        default=nearest_records(),
        metavar="DIR",
        help="folder of the run records; default: mlruns in this folder or the nearest one above it that has records",
    )


def add_moved_images(parser: argparse.ArgumentParser) -> None:
    """`--data.root`, `--data.test` and `--data.table`, for `moved_images`."""
    for name, what in MOVED_IMAGES.items():
        parser.add_argument(f"--{name}", metavar="PATH", help=f"{what}, if it has moved")


def moved_images(args: argparse.Namespace) -> dict[str, str]:
    """Where images have moved, by setting."""
    return {name: path for name in MOVED_IMAGES if (path := getattr(args, name))}


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--tracking.root`."""
    parser.add_argument(
        "--model",
        metavar="RUN|NAME@ALIAS|PATH",
        help="run (id, name or latest), registered model (NAME@ALIAS or NAME@VERSION), model folder or checkpoint;"
        f" default: latest; {LATEST_HELP}",
    )
    add_tracking_root(parser)


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """The image files, as `images` of the parsed options."""
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image file, folder, or pattern such as 'photos/*.jpg'"
    )


def given_images(arguments: Sequence[str], terminal: Terminal) -> list[Path]:
    """The image files that arguments name, without pictures that `explain` drew unless there is nothing else.

    Raises `UserError` as `find_images` does.
    """
    found = find_images(arguments, terminal.warn)
    named = {expand_user(argument) for argument in arguments}
    images = [path for path in found if path in named or not is_picture(path)] or found
    if passed_over := len(found) - len(images):
        terminal.warn(
            f"passed over {passed_over:,} pictures that ./launch.sh explain drew; name them to include them"
        )
    return images


def report_unreadable(unreadable: Mapping[str, str], count: int) -> int:
    """Print which of `count` files are not readable images, each with the reason; returns the exit status.

    Raises `UserError` if none is readable.
    """
    for path, reason in unreadable.items():
        print(f"runner: {printable(path)} {reason}", file=sys.stderr)
    if len(unreadable) == count:
        raise UserError(f"None of {count} files is a readable image; check the paths.")
    return SOME_UNREADABLE if unreadable else 0


def positive_integer(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)
