"""What names images and their classes: tables of labels, and saved Hugging Face datasets."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from random import Random

import pyarrow as pa
from pyarrow import parquet

from fuzz.damage import damaged
from fuzz.table_formats import Table, rows_of
from fuzz.target import Target, check
from runner.config.data_schema import DataConfig
from runner.data.listing import Listing, list_folder
from runner.data.tables.hf_dataset import list_saved_dataset
from runner.data.tables.label_table import list_table
from runner.utils.errors import UserError

IMAGES = ("a.jpg", "b b.jpg", "c,d.png", "é.jpg", "f/g.jpg")
LABELS = ("cat", "NA", "007", 'o"x', "cat")
SPLITS = ("train", "", "val", "TEST", "dev")


def labels(listing: Listing) -> dict[str, str]:
    """The label of each image; they are sorted, and all numbers are in range."""
    paths = list(listing.paths)
    count = len(paths)
    check(paths == sorted(set(paths)) and count > 0, f"the paths are {paths}")
    check(listing.labels.shape == (count,) and listing.stamps.shape == (count, 4), "columns of other lengths")
    check(
        0 <= listing.labels.min() <= listing.labels.max() < len(listing.classes), f"labels {listing.labels}"
    )
    check(listing.splits is None or set(listing.splits.tolist()) <= {-1, 0, 1, 2}, f"splits {listing.splits}")
    check(
        "" not in listing.classes and not any("\0" in name for name in listing.classes), f"{listing.classes}"
    )
    return {path: listing.classes[label] for path, label in zip(paths, listing.labels, strict=True)}


class LabelTable(Table):
    """labels.csv: each image has the label that a reader of CSV sees beside it."""

    texts = (
        'path,label,split\n"a.jpg","cat",train\nb b.jpg,NA,\n"c,d.png",7,val\né.jpg,"o""x",TEST\nf/g.jpg,"x, y",dev\n',
        'label,group,path\r\nb,p1,a.jpg\r\nb,p1,b b.jpg\r\nc,,f/g.jpg\r\nc,p2,"c,d.png"\r\nc,p3,é.jpg\r\n',
    )

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        for name in IMAGES:
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "images" / name).write_bytes(b"")
        self.found = list_folder(folder / "images", False)

    def read(self, content: bytes) -> None:
        path = self.folder / "labels.csv"
        path.write_bytes(content)
        found = labels(list_table(self.found, DataConfig("folder", table=str(path))))
        check({name for name in found if name[0] != "/"} <= set(IMAGES), f"the images are {list(found)}")
        try:
            rows = [row for row in rows_of(content.decode("utf-8-sig", "replace")) if row]
        except csv.Error:  # a long cell in a column that is not read
            return
        header = [name.strip() for name in rows[0]]
        if "path" in header and "label" in header and "\0" not in content.decode("utf-8", "replace"):
            seen = {row[header.index("path")]: row[header.index("label")].strip() for row in rows[1:]}
            check(
                list(found.values()) == [seen.get(name, found[name]) for name in found],
                f"{seen} became {found}",
            )
            check(len(found) == len(rows) - 1, f"{len(rows) - 1} rows became {len(found)} images")


class ParquetTable(LabelTable):
    """labels.parquet"""

    def make(self, random: Random) -> bytes:
        buffer = io.BytesIO()
        values = random.choice(
            (LABELS, (1, 2, None, 2, 1), (1.0, 2.0, 3.0, 1.0, 1.0), ([1], [2], [], [1], [2]))
        )
        columns = {"path": pa.array(IMAGES), "label": pa.array(values), "split": pa.array(SPLITS)}
        parquet.write_table(pa.table(columns), buffer, compression=random.choice(("none", "snappy")))
        return damaged(random, buffer.getvalue()) if random.random() < 0.8 else buffer.getvalue()

    def read(self, content: bytes) -> None:
        path = self.folder / "labels.parquet"
        path.write_bytes(content)
        found = labels(list_table(self.found, DataConfig("folder", table=str(path))))
        check({name for name in found if name[0] != "/"} <= set(IMAGES), f"the images are {list(found)}")


class SavedDataset(Target):
    """One of the files of a saved dataset is damaged."""

    FILES = ("state.json", "dataset_info.json", "data-00000-of-00001.arrow")

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        images = pa.array([{"bytes": bytes([number]) * 50, "path": None} for number in range(20)], kind)
        table = pa.table({"image": images, "label": pa.array([number % 2 for number in range(20)])})
        buffer = io.BytesIO()
        with pa.ipc.new_stream(buffer, table.schema) as stream:
            stream.write_table(table, max_chunksize=8)
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
        self.contents = {
            "state.json": json.dumps({"_data_files": [{"filename": self.FILES[2]}], "_split": None}).encode(),
            "dataset_info.json": json.dumps({"features": features}).encode(),
            self.FILES[2]: buffer.getvalue(),
        }
        self.case = 0

    def make(self, random: Random) -> bytes:
        place = random.randrange(3)
        return bytes([place]) + damaged(random, self.contents[self.FILES[place]])

    def read(self, content: bytes) -> None:
        self.case += 1
        root = self.folder / f"case-{self.case}"
        root.mkdir()
        for name, whole in self.contents.items():
            (root / name).write_bytes(whole)
        (root / self.FILES[content[0] if content else 0]).write_bytes(content[1:])
        listing = list_saved_dataset(root, DataConfig("folder", root=str(root)))
        for path in labels(listing):
            try:
                listing.files.read(path)
            except OSError as error:
                raise UserError(f"{error.strerror}.") from None
