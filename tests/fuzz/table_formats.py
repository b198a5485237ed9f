"""Tables: the manifest, class names, and boxes."""

from __future__ import annotations

import csv
import io
import math
import re
from pathlib import Path, PurePosixPath
from random import Random
from types import SimpleNamespace
from typing import Any

from PIL import Image

from fuzz.damage import damaged
from fuzz.target import Target, check
from runner.config.augment_schema import AugmentConfig
from runner.data.files import FolderFiles
from runner.data.images import SPLITS, Entry, Images
from runner.data.manifest import Manifest, parse_manifest
from runner.evaluation.explanation_checks import read_boxes
from runner.serving import class_names
from runner.utils.console import Terminal
from runner.utils.hashing import digest_bytes
from runner.utils.text import valid_unicode

SIDES = ("left", "top", "right", "bottom")
CELLS = (
    "", " ", "0", "-1", "1e999", "nan", "inf", "-inf", "9" * 5000, "1_0", " 7 ", "٣", "1.5", "..", "../x.png",
    "/etc/passwd", "cat/../../x.png", "cat//x.png", "./cat/x.png", "cat/\0.png", "a\nb", 'a"b', "a,b", "\ufeff",
    "\ud800", "TRAIN", "train ", "A" * 200_000, "=1+1", "\x1b[2J", "\u202e", "cat\\x.png", "C:\\x.png", "x" * 40,
    "0" * 40, "F" * 40,
)  # fmt: skip


def mutated_table(random: Random, rows: list[list[str]]) -> bytes:
    """A valid CSV table with one to three changed cells or rows."""
    rows = [list(row) for row in rows]
    for _ in range(random.choice((1, 1, 2, 3))):
        place = random.randrange(len(rows))
        row, kind = rows[place], random.randrange(9)
        if kind < 4 and row:
            row[random.randrange(len(row))] = random.choice(CELLS)
        elif kind == 4:
            rows.insert(random.randint(0, len(rows)), list(row))
        elif kind == 5 and len(rows) > 1:
            del rows[place]
        elif kind == 6 and row:
            one, two = random.randrange(len(row)), random.randrange(len(row))
            row[one], row[two] = row[two], row[one]
        elif kind == 7:
            row.append(random.choice(CELLS))
        elif row:
            del row[-1]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def rows_of(text: str) -> list[list[str]]:
    """The cells of a table."""
    return list(csv.reader(io.StringIO(text, newline="")))


class Table(Target):
    """A table, damaged as bytes or by cells."""

    texts: tuple[str, ...] = ()

    def make(self, random: Random) -> bytes:
        text, other = random.choice(self.texts), random.choice(self.texts)
        if random.random() < 0.5:
            return damaged(random, text.encode(), other.encode())
        return mutated_table(random, rows_of(text))


class ManifestFile(Table):
    """manifest.csv: what is accepted could have been written by the runner."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        entries = [
            Entry(
                f"{label}/{name}.png",
                label,
                SPLITS[(place + number) % 3],
                10 * number,
                digest_bytes(name.encode()),
            )
            for place, label in enumerate(("cat", "dog, small", 'o"x\nen'))
            for number, name in enumerate(("a", "b b", "c,d", "é"))
        ]
        self.texts = tuple(
            Manifest(FolderFiles(folder), Images.of(sorted(some, key=lambda each: each.path))).to_csv()
            for some in (entries, entries[:5])
        )

    def read(self, content: bytes) -> None:
        text = content.decode("utf-8", "surrogateescape")  # as what reads a run's manifest does
        manifest = parse_manifest(text, FolderFiles(self.folder))
        check(rows_of(manifest.to_csv()) == rows_of(valid_unicode(text)), "other rows come back")
        paths = [entry.path for entry in manifest.entries]
        check(len(set(paths)) == len(paths), "an image is there twice")
        check(bool(paths), "there is no image")
        for entry in manifest.entries:
            parts = PurePosixPath(entry.path).parts
            check(entry.split in SPLITS, f"the split is {entry.split!r}")
            check(entry.size >= 0, f"the size is {entry.size}")
            check(re.fullmatch("[0-9a-f]{40}", entry.digest) is not None, f"the digest is {entry.digest!r}")
            check(".." not in parts and "\0" not in entry.path, f"the path is {entry.path!r}")
            check(str(PurePosixPath(entry.path)) == entry.path, f"the path is {entry.path!r}")
            check(bool(entry.label), "an image has no class")
            (self.folder / entry.path).exists()


class NamesFile(Table):
    """--lang FILE: each class has the name from the file, or its own."""

    CLASSES = ("cat", "dog", "ox")
    texts = ("class,name\ncat,猫\ndog,狗\n", 'class,name\r\ncat,"Kat,ze"\r\nox,Ochse\r\nwolf,Wolf\r\n')

    def read(self, content: bytes) -> None:
        path = self.folder / "names.csv"
        path.write_bytes(content)
        found = class_names.translations(str(path), self.CLASSES)
        check(tuple(found) == self.CLASSES, f"names of {tuple(found)}")
        table = [[cell.strip() for cell in row] for row in rows_of(content.decode("utf-8-sig")) if row]
        for label, name in found.items():
            check(name == label or [label, name] in table, f"{label} is called {name!r}")
            check(bool(name) and min(name) >= " " and "\x7f" not in name, f"{label} is called {name!r}")
            given = {row[1] for row in table if row[0] == label and row[1]}
            check(len(given) < 2, f"{label} has the names {given}, and is called {name!r}")


class BoxesFile(Table):
    """--boxes FILE: each box lies inside its transformed image."""

    texts = (
        "path,left,top,right,bottom\ncat/a.png,1,2,30,20\ncat/b.png,0.5,0,40,30\n",
        "path,left,top,right,bottom\r\ndog/a.png,10,10,38,38\r\nelsewhere.png,1,1,2,2\r\ncat/a.png,0,0,48,40\r\n",
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        places = ("cat/a.png", "cat/b.png", "dog/a.png")
        for place in places:
            (folder / place).parent.mkdir(exist_ok=True)
            Image.new("RGB", (48, 40), "red").save(folder / place)
        entries = Images.of(Entry(place, place[:3], "test", 1, "0" * 40) for place in places)
        experiment = SimpleNamespace(augment=AugmentConfig(resize=36, crop=32))
        loader = SimpleNamespace(files=FolderFiles(folder))
        self.known = set(places)
        self.best: Any = SimpleNamespace(entries=entries, loader=loader, experiment=experiment, split="test")

    def read(self, content: bytes) -> None:
        path = self.folder / "boxes.csv"
        path.write_bytes(content)
        found = read_boxes(path, self.best, Terminal(enabled=False))
        check(bool(found) and set(found) <= {0, 1, 2}, f"boxes of {set(found)}")
        for left, top, right, bottom in found.values():
            box = (left, top, right, bottom)
            check(all(map(math.isfinite, box)), f"the box is {box}")
            check(0 <= left < right <= 32 and 0 <= top < bottom <= 32, f"the box is {box}")
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        numbers = [float(row[side]) for row in rows if row["path"] in self.known for side in SIDES]
        check(all(map(math.isfinite, numbers)), f"the sides {numbers}"[:500])
