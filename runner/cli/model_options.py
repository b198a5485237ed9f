"""Options that predict, explain, export and a benchmark share."""

from __future__ import annotations

import argparse

SOME_UNREADABLE = 1
"""Exit status if some of the given files are not readable images."""


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """The images to read."""
    parser.add_argument(
        "images", metavar="IMAGE", nargs="+", help="image file, folder, or pattern such as 'photos/*.jpg'"
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The model to use, and where runs are recorded."""
    parser.add_argument(
        "--model",
        metavar="RUN|NAME@ALIAS|PATH",
        help="run (id, name or latest), registered model (NAME@ALIAS or NAME@VERSION), model folder or checkpoint;"
        " default: the newest finished run",
    )
    parser.add_argument(
        "--tracking.root",
        dest="tracking",
        default="mlruns",
        metavar="DIR",
        help="folder of the run records; default: mlruns",
    )


def positive_integer(text: str) -> int:
    """A whole number of at least 1. Raises ArgumentTypeError."""
    if not text.isdigit() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)
