"""Draws an image beside its class activation map."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from runner.utils.atomic_files import atomic_write

OPACITY = 0.8
"""Of the color where the map is 1; where it is 0 the image stays as it is."""
SIDE, MARGIN = 300, 10
"""Height of an image in the picture, and what is around it, in pixels."""
HEADING, CAPTION = 20, 13
"""Sizes of the texts, in pixels."""
LINES = 3
"""Of a text at most."""


def title(predicted: str, probability: float, true: str | None = None) -> str:
    """A picture's title: `✓ lamp, 98 %` or `✗ lamp, 61 %, true: cup`; no mark if the true class is unknown."""
    prediction = f"{predicted}, {100 * probability:.0f} %"
    if true is None:
        return prediction
    return f"✓ {prediction}" if predicted == true else f"✗ {prediction}, true: {true}"


def draw(image: Tensor, heatmap: np.ndarray, title: str, label: str, path: Path) -> None:
    """Draw an image and, beside it, the image under its map.

    Args:
        image: 3 × h × w, uint8, as the model sees it.
        heatmap: The map, h × w in [0, 1].
        title: Title of the picture.
        label: Below the map, such as `Grad-CAM for lamp`.
        path: PNG file to write.
    """
    pixels = image.permute(1, 2, 0).numpy()
    panels = [_enlarged(each) for each in (pixels, blend(pixels, heatmap))]
    width, height = panels[0].size
    whole = 2 * width + 3 * MARGIN
    heading = wrapped(title, HEADING, whole - 2 * MARGIN)
    caption = wrapped(label, CAPTION, width)
    top = _text_height(heading, HEADING) + 2 * MARGIN
    bottom = top + height + MARGIN // 2
    picture = Image.new("RGB", (whole, bottom + _text_height(caption, CAPTION) + MARGIN), "white")
    pen = ImageDraw.Draw(picture)
    pen.multiline_text((MARGIN, MARGIN), "\n".join(heading), "black", _font(HEADING))
    for index, panel in enumerate(panels):
        picture.paste(panel, (MARGIN + index * (width + MARGIN), top))
    pen.multiline_text((2 * MARGIN + width, bottom), "\n".join(caption), "#444444", _font(CAPTION))
    with atomic_write(path) as partial:
        picture.save(partial, "png")


def blend(pixels: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """An image (h × w × 3, uint8) under a map (h × w in [0, 1]), whose values are its color and its opacity."""
    opacity = OPACITY * heatmap[..., None]
    mixed = (1 - opacity) * pixels + opacity * _colors()[(255 * heatmap).round().astype(np.uint8)]
    return np.asarray(mixed.round().clip(0, 255).astype(np.uint8))


def wrapped(text: str, size: int, width: int) -> list[str]:
    """The lines of a text that is `size` pixels high and at most `width` pixels wide; what does not fit ends in …"""
    lines = list(_lines(text.split(), size, width))
    if len(lines) > LINES:
        last = lines[LINES - 1]
        while last and not _fits(f"{last} …", size, width):
            last = last[:-1]
        lines = [*lines[: LINES - 1], f"{last.rstrip()} …"]
    return lines


def _lines(words: Iterable[str], size: int, width: int) -> Iterator[str]:
    line = ""
    for word in words:
        if line and not _fits(f"{line} {word}", size, width):
            yield line
            line = ""
        line = f"{line} {word}".lstrip()
        while len(line) > 1 and not _fits(line, size, width):  # a word that is longer than a line
            count = max((each for each in range(1, len(line)) if _fits(line[:each], size, width)), default=1)
            yield line[:count]
            line = line[count:]
    if line:
        yield line


def _fits(text: str, size: int, width: int) -> bool:
    return _font(size).getlength(text) <= width


def _text_height(lines: list[str], size: int) -> int:
    box = ImageDraw.Draw(Image.new("1", (1, 1))).multiline_textbbox((0, 0), "\n".join(lines), _font(size))
    return int(np.ceil(box[3]))


def _enlarged(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(pixels)
    width = max(1, round(image.width * SIDE / image.height))
    return image.resize((width, SIDE), Image.Resampling.BICUBIC)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Matplotlib's font, which has more letters than Pillow's. Importing Matplotlib for it would take time."""
    spec = find_spec("matplotlib")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        file = Path(folder, "mpl-data/fonts/ttf/DejaVuSans.ttf")
        if file.exists():
            return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)


@functools.cache
def _colors() -> np.ndarray:
    """256 × 3, uint8: a perceptually uniform scale from dark violet to light yellow."""
    from matplotlib import colormaps

    return np.asarray(colormaps["inferno"](np.arange(256), bytes=True)[:, :3])
