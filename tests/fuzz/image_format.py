"""Images of every kind that the runner reads."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, features

from fuzz.damage import damaged
from fuzz.target import Target, check
from runner.data.files import FolderFiles
from runner.data.scan import verify_files
from runner.portable.images import open_rgb
from runner.portable.transform import evaluation_transform
from runner.utils.hashing import digest_bytes


class Picture(Target):
    """An image: a scan accepts it and it can be decoded and transformed, or the scan gives the reason in one line."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.seeds = _seeds()
        self.view = evaluation_transform(36, 32, "bilinear")

    def make(self, random: Random) -> bytes:
        content, other = random.choice(self.seeds), random.choice(self.seeds)
        if content[:4] == b"\x89PNG" and random.random() < 0.7:
            return _bent_png(random, content)
        if random.random() < 0.5:  # most of what decides lies in front
            front = random.choice((32, 64, 200))
            return damaged(random, content[:front], other[:front]) + content[front:]
        return damaged(random, content, other)

    def read(self, content: bytes) -> None:
        path = self.folder / "image"
        path.write_bytes(content)
        verdicts = verify_files(FolderFiles(self.folder), [path.name])
        check(verdicts.digests.tobytes().hex() == digest_bytes(content), "the digest is another file's")
        if fault := verdicts.errors.get(0, ""):
            check(fault.isprintable() and 0 < len(fault) < 1000, f"the reason is {fault[:300]!r}")
            return
        image = open_rgb(path)
        check(image.mode == "RGB" and min(image.size) > 0, f"a {image.mode} of {image.size}")
        check(open_rgb(io.BytesIO(content)).tobytes() == image.tobytes(), "it is another one each time")
        check(tuple(self.view(image).shape) == (3, 32, 32), "it has no view")


def _bent_png(random: Random, content: bytes) -> bytes:
    """A PNG with damaged, repeated or missing chunks, and correct checksums."""
    chunks = []
    place = 8
    while place < len(content):
        (length,) = struct.unpack(">I", content[place : place + 4])
        chunks.append((content[place + 4 : place + 8], content[place + 8 : place + 8 + length]))
        place += 12 + length
    one = random.randrange(len(chunks))
    name, inside = chunks[one]
    kind = random.randrange(6)
    if kind < 3:
        if name == b"IDAT" and kind:
            inside = zlib.compress(damaged(random, zlib.decompress(inside), b""))
        chunks[one] = (name, damaged(random, inside, chunks[0][1]))
    elif kind == 3:
        del chunks[one]
    elif kind == 4:
        chunks.insert(random.randint(0, len(chunks)), chunks[one])
    else:
        extra = random.choice(
            (b"tRNS", b"PLTE", b"gAMA", b"iCCP", b"eXIf", b"acTL", b"fcTL", b"fdAT", b"zTXt", b"IDAT")
        )
        chunks.insert(
            random.randint(1, len(chunks)), (extra, random.randbytes(random.choice((0, 1, 6, 26, 768))))
        )
    return content[:8] + b"".join(
        struct.pack(">I", len(inside)) + name + inside + struct.pack(">I", zlib.crc32(name + inside))
        for name, inside in chunks
    )


def _seeds() -> list[bytes]:
    draw = np.random.default_rng(0)
    colors = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    deep = Image.fromarray(draw.integers(0, 65536, (12, 16), dtype=np.uint16))
    whole = Image.fromarray(draw.integers(-(2**31), 2**31 - 1, (12, 16), dtype=np.int32))
    real = Image.fromarray(draw.random((12, 16), dtype=np.float32))
    clear = colors.convert("RGBA")
    clear.putalpha(128)
    palette = colors.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    several = [colors, colors.rotate(90), colors.rotate(180)]
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (colors, "PNG", {}),
        (colors, "PNG", {"exif": turned}),
        (clear, "PNG", {}),
        (palette, "PNG", {}),
        (palette, "PNG", {"transparency": 3}),
        (palette, "PNG", {"transparency": bytes(range(16))}),
        (colors.convert("L"), "PNG", {"transparency": 9}),
        (colors.convert("1"), "PNG", {}),
        (colors.convert("LA"), "PNG", {}),
        (deep, "PNG", {}),
        (colors, "JPEG", {}),
        (colors, "JPEG", {"exif": turned, "progressive": True}),
        (colors.convert("L"), "JPEG", {}),
        (colors.convert("CMYK"), "JPEG", {}),
        (palette, "GIF", {"transparency": 1}),
        (palette, "GIF", {"save_all": True, "append_images": several, "duration": 10}),
        (colors, "BMP", {}),
        (palette, "BMP", {}),
        (clear, "BMP", {}),
        (colors, "TIFF", {}),
        (colors, "TIFF", {"compression": "tiff_lzw"}),
        (colors, "TIFF", {"compression": "tiff_adobe_deflate", "save_all": True, "append_images": several}),
        (colors.convert("1"), "TIFF", {"compression": "group4"}),
        (deep, "TIFF", {}),
        (whole, "TIFF", {}),
        (real, "TIFF", {}),
        (colors.convert("CMYK"), "TIFF", {}),
        (colors, "PPM", {}),
        (deep, "PPM", {}),
        (colors, "WEBP", {}),
        (clear, "WEBP", {"lossless": True, "exif": turned}),
        (colors, "WEBP", {"save_all": True, "append_images": several}),
        (colors, "ICO", {}),
        (colors, "TGA", {}),
        (colors, "PCX", {}),
        (colors, "JPEG2000", {}),
        *([(colors, "AVIF", {})] if features.check("avif") else []),
    ]
    seeds = []
    for image, kind, options in wanted:
        file = io.BytesIO()
        image.save(file, kind, **options)
        seeds.append(file.getvalue())
    nothing = np.full((12, 16), np.nan, np.float32)
    file = io.BytesIO()
    Image.fromarray(nothing).save(file, "TIFF")
    return [*seeds, file.getvalue()]
