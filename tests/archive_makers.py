"""Makes small archives for tests: tar files with members of any type, zip files, WebDataset shards."""

from __future__ import annotations

import io
import json
import stat
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pictures import COLORS, draw


def jpeg(label: str, number: int) -> bytes:
    """A small picture of a class of `pictures.COLORS`."""
    buffer = io.BytesIO()
    draw(label, number).save(buffer, "JPEG")
    return buffer.getvalue()


def class_members(per_class: int = 4, prefix: str = "") -> dict[str, bytes]:
    """Path → content of pictures in class folders."""
    return {
        f"{prefix}{label}/{number:02}.jpg": jpeg(label, number)
        for label in COLORS
        for number in range(per_class)
    }


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar file of plain files. `mode` as of `tarfile.open`, to compress it."""
    with tarfile.open(path, mode, encoding="utf-8", errors="surrogateescape") as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_special(path: Path, name: str, kind: bytes, target: str = "") -> Path:
    """A tar file of a picture, `red/00.jpg`, and a member of another type."""
    with tarfile.open(path, "w") as tar:
        info = tarfile.TarInfo("red/00.jpg")
        info.size = len(content := jpeg("red", 0))
        tar.addfile(info, io.BytesIO(content))
        special = tarfile.TarInfo(name)
        special.type, special.linkname = kind, target
        tar.addfile(special)
    return path


def write_zip(path: Path, members: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """A zip file. A name that ends with ` -> ` is written as a symbolic link."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name.removesuffix(" -> "), (2024, 5, 17, 12, 0, 0))
            info.external_attr = ((stat.S_IFLNK if name.endswith(" -> ") else stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, content, method)
    return path


def shard_members(labels: Mapping[str, Any], suffix: str = ".cls") -> dict[str, bytes]:
    """Members of a shard: a picture `key.jpg` for each key, and its label as .cls, or as .json with a field label."""
    members = {}
    for number, (key, label) in enumerate(labels.items()):
        members[f"{key}.jpg"] = jpeg(sorted(COLORS)[number % 3], number)
        text = json.dumps({"label": label}) if suffix == ".json" else str(label)
        members[f"{key}{suffix}"] = text.encode()
    return members


def edited(path: Path, edit: Callable[[bytearray], None]) -> Path:
    """The file, its content changed by `edit`."""
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)
    return path
