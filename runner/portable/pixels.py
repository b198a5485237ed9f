"""From a file to the RGB picture that a person sees."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

THIN = 256
"""Greatest ratio of an image's sides: a thin one takes gigabytes when its shorter side is brought to the network's."""
STRIP = 2**20
"""Pixels that are scaled at once: a large image as float64, several times over, would take gigabytes."""

# A photograph may have so many pixels; from twice its limit on Pillow refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_rgb(file: Path | str | BinaryIO) -> Image.Image:
    """Decode an image into 8-bit RGB, upright.

    Gray and palette images become their colours, CMYK is converted, transparency lies on white, 16-bit and
    floating-point values are scaled to 8 bits, and the EXIF orientation is applied.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: as Pillow does for what is no whole
            image.
    """
    with Image.open(file) as image:
        if max(image.size) > THIN * min(image.size):
            raise ValueError(f"it is {image.width} × {image.height} pixels, too thin")
        image.load()
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_eight_bits(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        over = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """Values of a 16-bit (0 to 65535) or floating-point (0 to 1, else 0 to 255) gray image as uint8."""
    values = np.asarray(image)
    greatest = 65535.0
    if image.mode == "F":
        if np.isnan(values).any():
            raise ValueError("some of its pixels are no numbers")
        greatest = 1.0 if values.max(initial=0) <= 1 else 255.0
    found = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        scaled = values[top : top + rows].astype(np.float64) * (255 / greatest)
        found[top : top + rows] = np.clip(np.rint(scaled), 0, 255)
    return found
