"""Image files of every kind, and the RGB values that a person sees in them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 44
KINDS = (
    *("gray", "one bit", "16 bit", "float", "palette", "transparent palette", "RGBA", "gray with alpha"),
    *("CMYK", "EXIF 2", "EXIF 3", "EXIF 6", "EXIF 8", "webp", "bmp", "tif", "ppm"),
)


def save_kind(kind: str, folder: Path) -> tuple[Path, np.ndarray]:
    """Write a file of one of `KINDS`; returns its path and its RGB values (h × w × 3, uint8)."""
    gray, color = _gray(), _color()
    transparent = np.zeros((HEIGHT, WIDTH), bool)
    transparent[:20, :20] = True
    alpha = np.where(transparent, 0, 255).astype(np.uint8)
    path = folder / f"{kind}.png"
    options: dict[str, Any] = {}
    if kind == "gray":
        image, seen = Image.fromarray(gray), _as_rgb(gray)
    elif kind == "one bit":
        image = Image.fromarray(gray).convert("1")
        seen = _as_rgb(np.asarray(image).astype(np.uint8) * 255)
    elif kind == "16 bit":
        image, seen = Image.fromarray(gray.astype(np.uint16) * 257), _as_rgb(gray)
    elif kind == "float":
        path = folder / "float.tif"
        image, seen = Image.fromarray(gray.astype(np.float32)), _as_rgb(gray)
    elif kind == "palette":
        image = Image.fromarray(color).quantize(8)
        seen = np.asarray(image.convert("RGB"))
    elif kind == "transparent palette":
        image = Image.fromarray(color).quantize(8)
        options["transparency"] = index = int(np.asarray(image)[0, 0])
        on_white = np.asarray(image)[..., None] == index
        seen = np.where(on_white, np.uint8(255), np.asarray(image.convert("RGB")))
    elif kind == "RGBA":
        image = Image.fromarray(np.dstack([color, alpha]))
        seen = np.where(transparent[..., None], np.uint8(255), color)
    elif kind == "gray with alpha":
        image = Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))
        seen = _as_rgb(np.where(transparent, np.uint8(255), gray))
    elif kind == "CMYK":
        path = folder / "cmyk.tif"
        ink = np.dstack([255 - color, np.zeros((HEIGHT, WIDTH), np.uint8)])
        image, seen = Image.fromarray(ink, "CMYK"), color
    elif kind.startswith("EXIF"):
        orientation = int(kind.split()[1])
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
        stored = {3: np.rot90(color, 2), 6: np.rot90(color, 1), 8: np.rot90(color, -1), 2: color[:, ::-1]}
        image, seen = Image.fromarray(np.ascontiguousarray(stored[orientation])), color
    else:
        path = folder / f"picture.{kind}"
        image, seen = Image.fromarray(color), color
        options = {"lossless": True} if kind == "webp" else {}
    image.save(path, **options)
    return path, seen


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file whose header claims a size, with any data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _color() -> np.ndarray:
    values = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    values[:20, :, 0], values[:, :22, 1], values[10:, 10:, 2] = 250, 120, 60
    values[5:9, 5:9] = 255
    return values


def _gray() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH), np.uint8)


def _as_rgb(gray: np.ndarray) -> np.ndarray:
    return np.stack([gray] * 3, 2)
