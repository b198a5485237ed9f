"""Decodes image files into upright 8-bit RGB."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image

from .metadata import without_metadata

MAX_ASPECT_RATIO = 256
"""A thinner image would take gigabytes once its shorter side is resized to the model's input size."""
PIXELS_PER_STRIP = 2**20
"""Deep images are scaled in strips: a large one as float64 would take gigabytes."""

# Pillow warns above its pixel limit and refuses above twice the limit; large photographs lie between the two.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# It also warns of damaged metadata.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.\w+ImagePlugin")

TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


def open_rgb(file: Path | str | BinaryIO, max_pixels: int | None = None) -> Image.Image:
    """Decode an image into 8-bit RGB and apply its EXIF orientation.

    Gray, palette and CMYK images are converted. Transparency is placed on white. 16-bit and floating-point values
    are scaled to 8 bits.

    Args:
        file: Its path or content.
        max_pixels: A larger image is refused before it is decoded. Without a limit, Pillow's holds (179 million).

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: As Pillow does for a file that is not a
            complete image; ValueError for one that is too large or too thin.
    """
    return _to_rgb(_decode(file, max_pixels))


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image in memory, as `open_rgb` gives it from a file. Raises ValueError if it is too thin."""
    _check_shape(image)
    return _to_rgb(_upright(image))


def _decode(file: Path | str | BinaryIO, max_pixels: int | None) -> Image.Image:
    """The image, upright. If metadata are the reason why it cannot be decoded, it is decoded without them."""
    try:
        return _decode_with_metadata(file, max_pixels)
    except (Image.DecompressionBombError, PermissionError):
        raise
    except Exception:  # Pillow's plugins raise almost anything
        pixels = without_metadata(_content(file))
        if pixels is None:
            raise
        with suppress(Exception):  # the first error tells more
            return _decode_with_metadata(io.BytesIO(pixels), max_pixels)
        raise


def _decode_with_metadata(file: Path | str | BinaryIO, max_pixels: int | None) -> Image.Image:
    with Image.open(file) as image:
        _check_shape(image)
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ValueError(f"it has {image.width * image.height:,} pixels, more than {max_pixels:,}")
        image.load()
        return _upright(image)


def _check_shape(image: Image.Image) -> None:
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"it is {image.width} × {image.height} pixels, too thin")


def _upright(image: Image.Image) -> Image.Image:
    transposition = TRANSPOSITIONS.get(_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def _content(file: Path | str | BinaryIO) -> bytes:
    if isinstance(file, Path | str):
        return Path(file).read_bytes()
    file.seek(0)
    return file.read()


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation: 1 to 8, or anything if the metadata are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as viewers do: an image with damaged metadata is taken as it is stored
        return None


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
