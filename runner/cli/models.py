"""`runner models`: the architectures that `model.arch` takes."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
from collections.abc import Sequence

from runner.portable.backbone import BACKBONES, LIBRARIES
from runner.portable.backbones import timm_networks
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean

MAX_DETAILED = 20
"""Architectures that are built to say where they are divided: it takes half a second for each."""


def main(argv: Sequence[str]) -> int:
    """List architectures. Raises `UserError` if none matches."""
    parser = CommandLineParser(
        prog="runner models",
        description=f"List the architectures that model.arch takes. Of up to {MAX_DETAILED}, it says the parameters of"
        " the backbone and where its frozen part ends (with a pooled head of pool 1): which layer's output is stored if"
        " only the head trains, if the last block trains, and if all trains.",
    )
    parser.add_argument(
        "--filter",
        metavar="PATTERN",
        help="names that match, such as 'resnet*' or 'timm/convnext_tiny*'; default: all of torchvision",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON array")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    args = parser.parse_args(argv)
    names = _matching(args.filter)
    from runner.models.architectures import describe_architecture

    found = [describe_architecture(name, details=len(names) <= MAX_DETAILED) for name in names]
    if args.json:
        print(json.dumps([dataclasses.asdict(each) for each in found]))
        return 0
    is_detailed = any(each.split_points for each in found)
    header = ("architecture", *["parameters"] * is_detailed, "input", "weights here")
    header += ("head", "last:1", "all") * is_detailed
    rows = []
    for each in found:
        points = {point.trainable: str(point) for point in each.split_points}
        facts = (
            each.arch,
            *[f"{each.parameters / 1e6:,.1f} M" if each.parameters else ""] * is_detailed,
            f"{each.input_size} px" if each.input_size else "",
            "yes" if each.weights_here else "no" if each.weights else "none",
        )
        rows.append((*facts, *(points.get(name, "") for name in header[len(facts) :])))
    terminal = Terminal()
    if args.markdown:
        for row in (header, ("---",) * len(header), *rows):
            print(f"| {' | '.join(row)} |")
    else:
        terminal.table("Architectures", header, rows)
    for note in dict.fromkeys(each.note for each in found if each.note):
        terminal.warn(note)
    if args.filter is None:
        timm = LIBRARIES[timm_networks.PREFIX].names()
        terminal.line(
            f"and {len(timm):,} of timm: ./launch.sh models --filter 'timm/convnext*' lists some of them"
        )
    return 0


def _matching(pattern: str | None) -> list[str]:
    """Names of architectures: those of torchvision, or all that match a pattern or contain it."""
    known = [*BACKBONES, *(name for name in LIBRARIES[""].names() if name not in BACKBONES)]
    if pattern is None:
        return known
    names_timm = pattern.startswith("timm") or "*" in pattern or "/" in pattern
    if names_timm or not (found := _select(known, pattern)):
        names = LIBRARIES[timm_networks.PREFIX].names()
        known += [name for name in names if "." in pattern or "." not in name]
        found = _select(known, pattern)
    if not found:
        raise UserError(
            f"No architecture matches {pattern!r}{did_you_mean(pattern, known)};"
            " names of timm begin with timm/, as in 'timm/resnet*'."
        )
    return found


def _select(names: list[str], pattern: str) -> list[str]:
    """Names that match a pattern, or else contain it."""
    return fnmatch.filter(names, pattern) or [name for name in names if pattern in name]
