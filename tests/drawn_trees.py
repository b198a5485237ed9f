"""Makes the files that a drawn tree shows, as those of docs/data.md."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

MORE = "…"
"""Stands for more files like those above it in the folder, or for images."""
MORE_FILES = 8
LINE = re.compile(r"(?P<indent>(?:[│ ] {3})*)(?:[├└]── )?(?P<name>.+)")


@dataclass
class Node:
    """A file, or what holds files: a folder, whose name ends with a slash, or an archive."""

    name: str
    inside: list[Node] = field(default_factory=list)

    def files(self, above: str = "") -> Iterator[str]:
        """The paths of all files below, each relative to this node."""
        for node in self.inside:
            if node.inside or node.name.endswith("/"):
                yield from node.files(f"{above}{node.name.rstrip('/')}/")
            else:
                yield above + node.name


def parse_tree(text: str) -> list[Node]:
    """The folders and files that stand at the left of a drawing."""
    path = [Node("")]
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        assert match is not None, line
        is_branch = "── " in line
        depth = len(match["indent"]) // 4 + 1 + is_branch
        del path[depth:]
        above = path[-1]
        if match["name"] == MORE:
            siblings = [node.name for node in above.inside if not node.inside] or ["0.jpg"]
            above.inside += [
                Node(f"{name.partition('.')[0]}-{number}.{name.partition('.')[2]}")
                for number in range(MORE_FILES)
                for name in siblings
            ]
            continue
        path.append(Node(match["name"]))
        above.inside.append(path[-1])
    return path[0].inside


def make_tree(root: Path, text: str, contents: dict[str, str]) -> None:
    """Write the files of a drawing into a folder.

    Args:
        root: The folder.
        text: The drawing.
        contents: Text of some files, by name.
    """
    for node in parse_tree(text):
        _make(root, node, contents)


def _make(folder: Path, node: Node, contents: dict[str, str]) -> None:
    path = folder / node.name
    if node.name.endswith("/"):
        path.mkdir(exist_ok=True)
        for inner in node.inside:
            _make(path, inner, contents)
    elif node.inside:
        _archive(path, {name: _content(name, contents) for name in node.files()})
    else:
        path.write_bytes(_content(node.name, contents))


def _archive(path: Path, files: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def _content(path: str, contents: dict[str, str]) -> bytes:
    name = path.rsplit("/", 1)[-1]
    if name in contents:
        return contents[name].encode()
    suffix = Path(name).suffix
    if suffix not in MAKERS:
        raise AssertionError(f"drawn, but nothing makes it: {path}")
    return MAKERS[suffix](name)


_counter = iter(range(10**9))


def _picture(name: str) -> bytes:
    """A small picture that differs from all others."""
    random = np.random.default_rng(next(_counter))
    buffer = io.BytesIO()
    pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG" if name.endswith(".png") else "JPEG")
    return buffer.getvalue()


def _class_number(name: str) -> bytes:
    """`1.cls` and `1-7.cls` hold 1."""
    return str(int(re.split("[-.]", name)[0])).encode()


MAKERS: dict[str, Callable[[str], bytes]] = {
    ".jpg": _picture,
    ".png": _picture,
    ".txt": lambda name: f"{name}\n".encode(),
    ".cls": _class_number,
}
"""Content of a file, given its name, by suffix."""
