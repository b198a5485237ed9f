"""Folders of tiny JPEG files, to measure what a dataset costs besides its pixels."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from runner.utils.process_pool import map_in_processes
from runner.utils.processes import cpu_count

SIDE = 32
"""Pixels."""
PICTURES = 200
"""Different pictures; a comment makes each file's content its own."""
START_OF_IMAGE = 2
"""Bytes of a JPEG file before its first segment."""


def write_tiny_images(root: Path, count: int, classes: int) -> None:
    """Write `count` JPEG files into as many class folders, evenly."""
    root.mkdir(parents=True)
    calls = map_in_processes(partial(_write_class, root, count, classes), range(classes), cpu_count())
    for _ in calls:
        pass


def _write_class(root: Path, count: int, classes: int, label: int) -> None:
    folder = root / f"class{label:05}"
    folder.mkdir()
    pictures = _pictures()
    for number in range(label, count, classes):
        content = pictures[number // classes % PICTURES]
        comment = b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big")
        (folder / f"{number:08}.jpg").write_bytes(
            content[:START_OF_IMAGE] + comment + content[START_OF_IMAGE:]
        )


def _pictures() -> list[bytes]:
    random = np.random.default_rng(0)
    contents = []
    for _ in range(PICTURES):
        file = io.BytesIO()
        coarse = random.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=75)
        contents.append(file.getvalue())
    return contents
