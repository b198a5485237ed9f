"""What the gray values of images of more than 8 bits mean: which value is white.

It is decided once for all images of an experiment, and kept with its models: an image's own range must not decide what
its values mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from runner.portable.images import usual_depth
from runner.utils.errors import UserError
from runner.utils.text import counted

GrayRange: TypeAlias = tuple[str, float, float]
"""Type (uint16, int32 or float), smallest and largest value of an image, as `gray_range` returns them."""
NAMES = {"uint16": "16-bit", "int32": "32-bit", "float": "floating-point"}
MOST_BITS = 32
"""What data.depth may be at most."""
EXCESS = 1.05
"""Values of up to this fraction of white are not worth a word."""
DARK = 0.25
"""If the largest value of all images is less than this fraction of white, another white is probably meant."""


@dataclass
class GrayImages:
    """The images of a type: their number, and their smallest and largest value."""

    count: int = 0
    smallest: float = math.inf
    largest: float = -math.inf

    @property
    def has_finite_values(self) -> bool:
        """Whether any of their values is finite."""
        return self.smallest <= self.largest


def gray_images(ranges: Iterable[GrayRange | None]) -> dict[str, GrayImages]:
    """The images with a range by type."""
    found: dict[str, GrayImages] = {}
    for gray in ranges:
        if gray is not None:
            kind, smallest, largest = gray
            images = found.setdefault(kind, GrayImages())
            images.count += 1
            images.smallest, images.largest = min(images.smallest, smallest), max(images.largest, largest)
    return found


def resolve_depth(found: Mapping[str, GrayImages]) -> int | None:
    """The depth of the images of an experiment; None if each type has its own whatever the range.

    Raises `UserError` if floating-point values up to 1 are among values of a larger scale.
    """
    depths = {
        kind: usual_depth(kind, images.largest) for kind, images in found.items() if images.has_finite_values
    }
    if depths.keys() <= {"uint16"}:
        return None
    if len(set(depths.values())) > 1 and 1 in depths.values():
        others = " and ".join(f"{NAMES[kind]} images" for kind, depth in depths.items() if depth > 1)
        raise UserError(
            f"The floating-point images have values up to {found['float'].largest:g} and stand beside {others}, so that"
            " no value is white for all; convert them to one type."
        )
    return max(depths.values())


def depth_remarks(found: Mapping[str, GrayImages], setting: int | str, resolved: int | None) -> Iterator[str]:
    """What the user should know about the range of gray values: which white was chosen, and what looks wrong."""
    for kind, images in sorted(found.items()):
        if not images.has_finite_values:
            number = counted(images.count, f"{NAMES[kind]} image")
            yield f"no value is finite in {number}: infinite ones become black or white; convert them again"
            continue
        depth = resolved or usual_depth(kind, images.largest)
        white = 2**depth - 1
        extent = f"from {images.smallest:,.6g} to {images.largest:,.6g}"
        values = f"gray values {extent} in {counted(images.count, f'{NAMES[kind]} image')}"
        bits = max(1, math.ceil(math.log2(images.largest + 1))) if images.largest > 0 else 0
        if images.largest > EXCESS * white:
            advice = f"if they have {bits} bits, set data.depth={bits}" if bits <= MOST_BITS else "scale them"
            yield f"{values}: those above {white:,} are cut off; {advice}"
        elif images.largest < DARK * white:
            advice = f"if they have {bits} bits, set data.depth={bits}" if 0 < bits < depth else "scale them"
            yield f"{values}: white is {white:,} (data.depth={depth}), so that they are dark; {advice}"
        elif setting == "auto" and resolved:
            yield f"{values}: white is {white:,} (data.depth={depth})"
        if images.smallest < 0:
            yield f"{values}: negative ones become black"
