"""A contact sheet of augmentation: images and their views, each with what was drawn for it."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from runner.data.files import ImageFiles
from runner.data.images import Entry, Images
from runner.data.transforms import ViewTransform
from runner.data.view_parameters import described_view
from runner.portable.images import open_rgb
from runner.utils.figures import new_figure, save_figure

SIDE = 1.7
"""Inches of a picture."""
LINE = 30
"""Letters in a line below a picture."""
LINE_HEIGHT = 0.1
"""Inches."""


@dataclass(frozen=True)
class ContactSheet:
    """Some images, and their first views.

    Args:
        files: Reads the images.
        transform: Makes the views.
        views: Numbers of the views.
    """

    files: ImageFiles
    transform: ViewTransform
    views: Sequence[int]

    def draw(self, entries: Images, title: str, path: Path) -> None:
        """Draw a row for each image, itself first, into a PNG file. Raises OSError if one cannot be read."""
        rows = [self._pictures(entry) for entry in entries]
        columns, lines = 1 + len(self.views), max(len(text) for row in rows for _, text in row)
        height = (SIDE + LINE_HEIGHT * (1 + lines)) * len(rows) + 0.5
        figure = new_figure(SIDE * columns, height, dpi=110)
        grid = figure.subplots(len(rows), columns, squeeze=False)
        for places, pictures in zip(grid, rows, strict=True):
            for axes, (image, text) in zip(places, pictures, strict=True):
                axes.imshow(image)
                axes.set(xticks=[], yticks=[])
                below = "\n".join(text + [" "] * (lines - len(text)))
                axes.set_xlabel(below, fontsize=6, parse_math=False, linespacing=1.1)
        for axes, name in zip(grid[0], ["image", *(f"view {view}" for view in self.views)], strict=True):
            axes.set_title(name, fontsize=8)
        figure.suptitle(title, fontsize=9, parse_math=False)
        save_figure(figure, path)

    def _pictures(self, entry: Entry) -> list[tuple[Image.Image, list[str]]]:
        """An image and its views, each with lines of text."""
        image = open_rgb(io.BytesIO(self.files.read(entry.path)), depth=self.transform.depth)
        size = (max(image.size),) * 2
        itself = ImageOps.pad(image, size, color="white"), [entry.label, f"{image.width} × {image.height} px"]
        views = [described_view(self.transform, image, entry.digest, view) for view in self.views]
        pictures = [
            itself,
            *((Image.fromarray(view.permute(1, 2, 0).numpy()), words) for view, words in views),
        ]
        return [
            (picture, [line for word in words for line in textwrap.wrap(word, LINE)])
            for picture, words in pictures
        ]


def spread_over_classes(entries: Images, count: int) -> Images:
    """So many images, of as many classes as there are."""
    number_in_class = np.zeros(len(entries), int)
    for label in np.unique(entries.labels):
        own = entries.labels == label
        number_in_class[own] = np.arange(own.sum())
    # The first images of all classes; of these, evenly over the classes.
    order = np.lexsort((entries.labels, number_in_class))
    first = order[: max(count, int((number_in_class == 0).sum()))]
    return entries.take(np.sort(first[np.linspace(0, len(first) - 1, min(count, len(first))).astype(int)]))
