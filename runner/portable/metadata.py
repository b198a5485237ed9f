"""Leaves metadata out of image files: viewers show an image whose metadata are damaged, Pillow refuses it."""

from __future__ import annotations

import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"
JPEG = b"\xff\xd8"
PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
"""PNG chunks that decide the pixels."""
APP0, APP1, APP14, COMMENT, START_OF_SCAN = 0xE0, 0xE1, 0xEE, 0xFE, 0xDA


def without_metadata(content: bytes) -> bytes | None:
    """A PNG or JPEG file with nothing but its pixels and orientation; None for other files."""
    if content.startswith(PNG):
        return _pixels_of_png(content)
    return _pixels_of_jpeg(content) if content.startswith(JPEG) else None


def _pixels_of_png(content: bytes) -> bytes:
    kept, start = [PNG], len(PNG)
    while start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        kind, stop = content[start + 4 : start + 8], start + 12 + length
        chunk = content[start:stop]
        is_orientation = kind == b"eXIf" and chunk[-4:] == struct.pack(">I", zlib.crc32(chunk[4:-4]))
        if kind in PIXEL_CHUNKS or is_orientation:
            kept.append(chunk)
        start = stop
    return b"".join(kept)


def _pixels_of_jpeg(content: bytes) -> bytes:
    """Without application data and comments, except for those that the color space or orientation depend on."""
    kept, start = [JPEG], len(JPEG)
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != START_OF_SCAN:
        marker, length = struct.unpack_from(">xBH", content, start)
        segment = content[start : start + 2 + length]
        is_needed = (
            not (APP0 <= marker < APP0 + 16 or marker == COMMENT)
            or (marker == APP0 and length >= 16)
            or (marker == APP1 and segment[4:10] == b"Exif\0\0")
            or (marker == APP14 and length >= 14)
        )
        if is_needed:
            kept.append(segment)
        start += 2 + length
    return b"".join([*kept, content[start:]])
