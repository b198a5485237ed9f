"""Drawn folders for messages: the layouts that are accepted, and what was found instead."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from runner.data.listing import FileList
from runner.utils.errors import UserError
from runner.utils.text import printable

CLASS_FOLDERS = """\
photos/
├── cat/
│   ├── 1.jpg
│   └── …
└── dog/
    ├── 2.jpg
    └── …"""
SPLIT_FOLDERS = """\
photos/
├── train/
│   ├── cat/
│   │   └── …
│   └── dog/
│       └── …
└── test/
    ├── cat/
    │   └── …
    └── dog/
        └── …"""
MOST_SHOWN = 4
"""Folders, and files, of a folder that a drawing shows."""
DEPTH = 3
"""Levels of folders that a drawing shows."""


def layout_error(sentence: str, found: FileList) -> UserError:
    """The error for a layout that is not accepted: the sentence, and below it what was found and what is accepted."""
    lines = [sentence, "", "Found:", *_indented(drawing(found)), "", "Accepted (docs/data.md shows all):"]
    left, right = CLASS_FOLDERS.splitlines(), SPLIT_FOLDERS.splitlines()
    width = max(map(len, left)) + 6
    sides = (f"{a:<{width}}{b}".rstrip() for a, b in zip_longest(left, right, fillvalue=""))
    return UserError("\n".join([*lines, *_indented("\n".join(sides))]))


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def drawing(found: FileList) -> str:
    """The first folders and files of a dataset as a tree."""
    return "\n".join([f"{printable(found.files.root.name or str(found.files.root))}/", *_lines(found, "", 1)])


def _lines(found: FileList, folder: str, depth: int) -> list[str]:
    """The lines below a folder's name."""
    prefix = f"{folder}/" if folder else ""
    inner = [
        name for name in found.folders if name.startswith(prefix) and name and "/" not in name[len(prefix) :]
    ]
    entries: list[tuple[str, list[str]]] = []
    for name in inner[:MOST_SHOWN]:
        below = _lines(found, name, depth + 1) if depth < DEPTH else []
        entries.append((f"{printable(name[len(prefix) :])}/", below))
    files = np.flatnonzero(found.folder_of == found.folders.index(folder))
    shown = files[: MOST_SHOWN - 1].tolist()
    entries += [(printable(found.paths[index][len(prefix) :]), []) for index in shown]
    more = [
        f"{count:,} more {noun}{'s' * (count > 1)}"
        for count, noun in ((len(inner) - MOST_SHOWN, "folder"), (len(files) - len(shown), "file"))
        if count > 0
    ]
    if more:
        entries.append((f"… {' and '.join(more)}", []))
    lines = []
    for number, (name, below) in enumerate(entries, 1):
        branch, trunk = ("└── ", "    ") if number == len(entries) else ("├── ", "│   ")
        lines += [branch + name, *(trunk + line for line in below)]
    return lines
