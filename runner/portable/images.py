"""Decodes image files into upright 8-bit RGB."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

MAX_ASPECT_RATIO = 256
"""A thinner image would take gigabytes once its shorter side is resized to the model's input size."""
PIXELS_PER_STRIP = 2**20
"""Deep images are scaled in strips: a large one as float64 would take gigabytes."""

# Pillow warns above its pixel limit and refuses above twice the limit; large photographs lie between the two.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def open_rgb(file: Path | str | BinaryIO) -> Image.Image:
    """Decode an image into 8-bit RGB and apply its EXIF orientation.

    Gray, palette and CMYK images are converted. Transparency is placed on white. 16-bit and floating-point values
    are scaled to 8 bits.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: As Pillow does for a file that is not a
            complete image.
    """
    with Image.open(file) as image:
        if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
            raise ValueError(f"it is {image.width} × {image.height} pixels, too thin")
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(_to_uint8(image))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        foreground = image.convert("RGBA")
        background = Image.new("RGBA", foreground.size, "white")
        return Image.alpha_composite(background, foreground).convert("RGB")
    return image.convert("RGB")


def _to_uint8(image: Image.Image) -> np.ndarray:
    """Values of a 16-bit (0 to 65535) or floating-point (0 to 1, else 0 to 255) gray image as uint8."""
    values = np.asarray(image)
    white = 65535.0
    if image.mode == "F":
        if np.isnan(values).any():
            raise ValueError("some of its pixels are NaN")
        white = 1.0 if values.max(initial=0) <= 1 else 255.0
    result = np.empty(values.shape, np.uint8)
    rows = max(1, PIXELS_PER_STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        scaled = values[top : top + rows].astype(np.float64) * (255 / white)
        result[top : top + rows] = np.clip(np.rint(scaled), 0, 255)
    return result
