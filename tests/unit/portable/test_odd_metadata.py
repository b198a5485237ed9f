"""Whole images with damaged or unusual metadata, which every viewer shows, are read like the others."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import draw
from PIL import Image

from runner.data.files import FolderFiles
from runner.data.scan import verify_files
from runner.portable.images import open_rgb

PICTURE = draw("red", 1, (24, 16))
NEGATIVE = struct.pack("<HHIhh", 0x103, 8, 1, -5, 0)
TEXT_RESOLUTION = struct.pack("<HHI", 0x11A, 2, 4) + b"72\0\0"


def exif(entry: bytes) -> bytes:
    """Orientation 6 and another entry."""
    orientation = struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + orientation + entry + bytes(4)


def saved(kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, kind, **options)
    return file.getvalue()


def png(kind: bytes, content: bytes, before: bytes = b"IDAT", checksum: int | None = None) -> bytes:
    """The picture as a PNG file with another chunk."""
    whole = saved("PNG")
    place = whole.index(before) - 4
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
    return whole[:place] + chunk + whole[place:]


def jpeg(marker: int, content: bytes) -> bytes:
    """The picture as a JPEG file with another segment."""
    whole = saved("JPEG")
    return whole[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + whole[2:]


LONG = zlib.compress(bytes(2_000_000))
AS_STORED = {
    "PNG with 2 MB of compressed text": png(b"zTXt", b"workflow\0\0" + LONG),
    "PNG with long text at the end": png(b"zTXt", b"workflow\0\0" + LONG, before=b"IEND"),
    "PNG with a long color profile": png(b"iCCP", b"name\0\0" + LONG),
    "PNG with an unknown compression": png(b"zTXt", b"name\0\3x"),
    "PNG with a wrong checksum": png(b"tEXt", b"name\0value", checksum=1),
    "PNG with a short gamma": png(b"gAMA", b"x"),
    "PNG with damaged EXIF data": png(b"eXIf", b"garbage"),
    "PNG with a damaged animation": png(b"acTL", b"x"),
    "WEBP with damaged EXIF data": saved("WEBP", lossless=True, exif=b"garbage"),
    "JPEG with a short color profile": jpeg(0xE2, b"ICC_PROFILE\0"),
    "JPEG with a short JFIF segment": jpeg(0xE0, b"JFIF\0"),
    "JPEG with a short Adobe segment": jpeg(0xEE, b"Adobe\0"),
    "JPEG with EXIF data cut off": saved("JPEG", exif=exif(NEGATIVE)[:20]),
}
TURNED = {
    "JPEG with its resolution as text": saved("JPEG", exif=exif(TEXT_RESOLUTION)),
    "JPEG with a negative tag": saved("JPEG", exif=exif(NEGATIVE)),
    "PNG with a negative tag": png(b"eXIf", exif(NEGATIVE)[6:]),
}


@pytest.mark.parametrize("name", [*AS_STORED, *TURNED])
def test_odd_metadata_do_not_matter(tmp_path: Path, name: str) -> None:
    content = {**AS_STORED, **TURNED}[name]
    plain = np.asarray(Image.open(io.BytesIO(saved(name.split()[0], lossless=True))).convert("RGB"))
    upright = np.rot90(plain, -1) if name in TURNED else plain
    (tmp_path / "picture").write_bytes(content)
    for file in (tmp_path / "picture", io.BytesIO(content)):
        assert np.array_equal(np.asarray(open_rgb(file)), upright)
    assert verify_files(FolderFiles(tmp_path), ["picture"]).errors == {}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_pixels_are_refused_with_the_first_reason(tmp_path: Path, kind: str) -> None:
    for content in (saved(kind), png(b"zTXt", b"workflow\0\0" + LONG)):
        (tmp_path / "picture").write_bytes(content[: len(content) - 300])
        assert verify_files(FolderFiles(tmp_path), ["picture"]).errors[0].startswith("cannot be decoded: ")
