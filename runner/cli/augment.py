"""`runner augment`: draw a contact sheet of the augmented views of an experiment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import positive_integer
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.text import one_line, printable

DESCRIPTION = """\
Draw some training images and their first augmented views, each with what was chosen at random for it. Other words
name images and settings, as for train; a training with these settings sees the same views. Nothing is recorded.
"""
MOST = 200
"""Views on a sheet."""


def main(argv: Sequence[str]) -> int:
    """Draw a contact sheet. Raises `UserError` as `train` does, and where nothing is augmented."""
    parser = CommandLineParser(prog="runner augment", description=DESCRIPTION, allow_abbrev=False)
    text = "where to draw the sheet (PNG); default: augment.png"
    parser.add_argument("--show", type=Path, default=Path("augment.png"), metavar="FILE", help=text)
    parser.add_argument("--images", type=positive_integer, default=4, metavar="N", help="default: 4")
    parser.add_argument("--views", type=positive_integer, default=6, metavar="N", help="of each; default: 6")
    options, words = parser.parse_known_args(argv)
    if options.images * options.views > MOST:
        raise UserError(
            f"A sheet of {options.images} × {options.views} views is too large; ask for {MOST} at most."
        )
    if not options.show.parent.is_dir():
        raise UserError(f"There is no folder {printable(str(options.show.parent))} for --show.")

    from runner.config.parser import parse

    experiment, _ = parse(words, prog="runner augment")
    augment = experiment.augment
    if augment.views == "none":
        raise UserError(
            "augment.views is none: the images are not augmented; set it to fresh or to a number of views."
        )

    from runner.data.contact_sheet import ContactSheet, spread_over_classes
    from runner.data.manifest import scan_dataset
    from runner.data.transforms import ViewTransform
    from runner.utils.console import Terminal

    terminal = Terminal()
    manifest = scan_dataset(experiment, terminal).split(experiment)
    depth = manifest.depth if experiment.data.depth == "auto" else experiment.data.depth
    count = options.views if augment.views == "fresh" else min(options.views, augment.views)
    transform = ViewTransform(augment, experiment.seed.augment, depth)
    sheet = ContactSheet(manifest.files, transform, range(count))
    entries = spread_over_classes(manifest.select("train"), options.images)
    title = f"{experiment.name}: augmented views, seed {experiment.seed.augment}"
    try:
        sheet.draw(entries, title, options.show)
    except OSError as error:
        raise UserError(f"The sheet was not drawn: {one_line(str(error), 300)}.") from None
    terminal.line(
        f"{count} views of each of {len(entries)} images are drawn in {printable(str(options.show))}"
    )
    return 0
