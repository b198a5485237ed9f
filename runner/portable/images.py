"""Decodes image files into upright 8-bit RGB."""

from __future__ import annotations

import io
import math
import warnings
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .metadata import JPEG, PNG, without_metadata

MAX_ASPECT_RATIO = 256
"""A thinner image would take gigabytes once its shorter side is resized to the model's input size."""
PIXELS_PER_STRIP = 2**20
"""Deep and transparent images are converted in strips: a large one would take gigabytes."""

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
METADATA = frozenset({"exif", "xmp"})
"""What Pillow keeps of a JPEG file that may say its orientation."""


def open_rgb(
    file: Path | str | BinaryIO, max_pixels: int | None = None, depth: int | None = None
) -> Image.Image:
    """Decode an image into 8-bit RGB and apply its EXIF orientation.

    Gray, palette and CMYK images are converted. Transparency is placed on white. Deeper gray values are scaled.

    Args:
        file: Its path or content.
        max_pixels: A larger image is refused before it is decoded. Without a limit, Pillow's holds (179 million).
        depth: Bits of the gray values of images of more than 8 bits: white is 2^depth - 1. None takes the depth
            that `usual_depth` gives for the image.

    Raises:
        OSError, ValueError, SyntaxError, Image.DecompressionBombError: As Pillow does for a file that is not a
            complete image; ValueError for one that is too large or too thin.
    """
    return to_rgb(decode(file, max_pixels), depth)


def upright_rgb(image: Image.Image, depth: int | None = None) -> Image.Image:
    """An image in memory, as `open_rgb` gives it from a file. Raises ValueError as it does."""
    _check_shape(image)
    return to_rgb(_upright(image), depth)


def gray_range(image: Image.Image) -> tuple[str, float, float] | None:
    """Type (uint16, int32 or float), smallest and largest finite value of a gray image of more than 8 bits.

    Infinity and minus infinity if no value is finite. None for other images. Raises ValueError if a pixel is NaN.
    """
    if not (image.mode.startswith("I") or image.mode == "F"):
        return None
    values = np.asarray(image)
    kind = {"F": "float", "I": "int32"}.get(image.mode, "uint16")
    if kind == "float":
        if np.isnan(values).any():
            raise ValueError("some of its pixels are NaN")
        finite = np.isfinite(values)  # as a mask: a selection would be another copy
        smallest = values.min(where=finite, initial=math.inf)
        return kind, float(smallest), float(values.max(where=finite, initial=-math.inf))
    return kind, float(values.min()), float(values.max())


def usual_depth(kind: str, largest: float) -> int:
    """Bits of gray values of a type: 16 for uint16; else the fewest of 8, 16, 32 that hold the largest value.

    Floating-point values up to 1 have one bit: white is 1. They may exceed white by 5 %, as after resampling.
    """
    if kind == "uint16":
        return 16
    depths, excess = ((1, 8, 16), 1.05) if kind == "float" else ((8, 16), 1.0)
    return next((depth for depth in depths if largest <= excess * (2**depth - 1)), 32)


def decode(file: Path | str | BinaryIO, max_pixels: int | None = None) -> Image.Image:
    """The image, upright, in the mode that it is stored in. Raises as `open_rgb`.

    If metadata are the reason why it cannot be decoded, it is decoded without them.
    """
    try:
        return _decode_with_metadata(file, max_pixels)
    except (Image.DecompressionBombError, PermissionError):
        raise
    except Exception:  # Pillow's plugins raise almost anything
        pixels = _without_metadata(file)
        if pixels is None:
            raise
        with suppress(Exception):  # the first error tells more
            return _decode_with_metadata(io.BytesIO(pixels), max_pixels)
        raise


def _decode_with_metadata(file: Path | str | BinaryIO, max_pixels: int | None) -> Image.Image:
    with _open(file) as image:
        if image.format == "EPS":  # a program, which Pillow lets Ghostscript run
            raise ValueError("it is an EPS file; save it as PNG")
        _check_shape(image)
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ValueError(f"it has {image.width * image.height:,} pixels, more than {max_pixels:,}")
        image.load()
        return _upright(image)


def _open(file: Path | str | BinaryIO) -> Image.Image:
    """The image, not decoded yet. Pillow tries its formats in turn, which a JPEG file in memory need not wait for."""
    if isinstance(file, io.BytesIO) and file.getbuffer()[: len(JPEG)] == JPEG:
        with suppress(UnidentifiedImageError):
            return Image.open(file, formats=("JPEG",))
    return Image.open(file)


def _check_shape(image: Image.Image) -> None:
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"it is {image.width} × {image.height} pixels, too thin")


def _upright(image: Image.Image) -> Image.Image:
    transposition = TRANSPOSITIONS.get(_orientation(image))
    return image if transposition is None else image.transpose(transposition)


def _without_metadata(file: Path | str | BinaryIO) -> bytes | None:
    """A PNG or JPEG file without metadata; None for others, which may be large and are not read."""
    with open(file, "rb") if isinstance(file, Path | str) else nullcontext(file) as content:
        content.seek(0)
        start = content.read(len(PNG))
        return without_metadata(start + content.read()) if start.startswith((PNG, JPEG)) else None


def _orientation(image: Image.Image) -> Any:
    """The EXIF orientation: 1 to 8, or anything if the metadata are damaged."""
    if image.format == "JPEG" and not METADATA.intersection(image.info):
        return None  # Pillow would look, for as long as it takes to decode a few thousand pixels
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # as viewers do: an image with damaged metadata is taken as it is stored
        return None


def to_rgb(image: Image.Image, depth: int | None = None) -> Image.Image:
    """A decoded image as 8-bit RGB. Raises ValueError if a pixel is NaN."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if (gray := gray_range(image)) is not None:
        image = Image.fromarray(_to_uint8(image, depth or usual_depth(gray[0], gray[2])))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """An image with transparency on a white background, as RGB."""
    result = Image.new("RGB", image.size)
    rows = max(1, PIXELS_PER_STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, "white")
        result.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return result


def _to_uint8(image: Image.Image, depth: int) -> np.ndarray:
    """Gray values of `depth` bits as uint8; values outside, also infinite ones, become black or white."""
    values = np.asarray(image)
    scale = 255 / (2.0**depth - 1)
    result = np.empty(values.shape, np.uint8)
    rows = max(1, PIXELS_PER_STRIP // values.shape[1])
    for top in range(0, len(values), rows):
        scaled = values[top : top + rows].astype(np.float64) * scale
        result[top : top + rows] = np.clip(np.rint(scaled), 0, 255)
    return result
