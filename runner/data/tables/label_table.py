"""Images that a table names, with their classes and, if it has them, their splits and groups."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from runner.config.data_schema import DataConfig
from runner.data.files import FolderFiles
from runner.data.images import NO_SPLIT, SPLITS
from runner.data.layouts.layout import SPLIT_FOLDERS
from runner.data.listing import FileList, Listing
from runner.data.tables.paths import TableImages, find_images
from runner.data.tables.reader import Table, columns_of, read_table
from runner.utils.errors import UserError
from runner.utils.text import counted, did_you_mean, printable

if TYPE_CHECKING:
    import pyarrow as pa

LABEL_SEPARATORS = ("|", ";", ",")
"""Between the labels of one image, in tables that give several."""
MAX_LABEL = 255
"""Bytes, as of a folder's name."""


def list_table(found: FileList | None, data: DataConfig, group: str | None = None) -> Listing:
    """The images that the table `data.table` names.

    Args:
        found: The files of data.root: the table's paths are relative to it. None: they are relative to its own folder.
        data: Names the table, and its columns if they are not called path, label, split and group.
        group: As `split.group`, which may name a column of the table.

    Raises `UserError` for a table that cannot be read or lacks a column and, with the lines, for images that are not
    there or named twice, addresses instead of paths, images with no or several labels, and unknown splits.
    """
    assert data.table is not None  # noqa: S101 (for types: it is called for a table)
    path = Path(data.table).expanduser()
    table = read_table(path, lambda names: _columns(path, names, data, group))
    if not len(table):
        raise UserError(f"The table {path} has a header but names no image; fill it.")
    classes, labels = _labels(table)
    splits = _splits(table)
    groups = _groups(table)
    images = find_images(table, found)
    layout, remarks = f"images named in {printable(path.name)}", images.remarks
    if splits is not None:
        splits = splits[images.rows]
        layout += ", with splits"
    elif (splits := _splits_by_folder(images)) is not None:
        layout += ", in folders of their splits"
    if groups is not None:
        layout += f", groups by {printable(table.names['group'])}"
        if alone := int((groups < 0).sum()):
            remarks += (f"{counted(alone, 'image')} of the table without a group: each is on its own",)
        groups = groups[images.rows]
    return Listing(
        FolderFiles(path.absolute().parent) if found is None else found.files,
        images.paths,
        images.stamps,
        classes,
        labels[images.rows],
        splits,
        groups,
        layout,
        remarks,
    )


def _columns(path: Path, names: Sequence[str], data: DataConfig, group: str | None) -> dict[str, str]:
    """The names of the columns to read, by role."""
    wanted = {role: data.columns.get(role, role) for role in ("path", "label", "split", "group")}
    needed = {"path", "label", *data.columns} & wanted.keys()
    if group is not None and group in names:
        wanted["group"] = group
    elif group is not None:  # a regular expression
        del wanted["group"]
        needed.discard("group")
    return columns_of(path, names, wanted, sorted(needed, key=list(wanted).index))


def _trimmed(column: pa.LargeStringArray) -> tuple[list[str], np.ndarray]:
    """The different cells, without the spaces around them, and the index of each cell's."""
    coded = column.dictionary_encode()
    return [name.strip() for name in coded.dictionary.to_pylist()], coded.indices.to_numpy()


def _labels(table: Table) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes, sorted, and the index of each row's, int32."""
    names, codes = _trimmed(table.columns["label"])
    empty = np.array([not name for name in names])
    table.refuse(empty[codes], "no label", "give each image one, or leave it out", "path")
    distinct = frozenset(names)
    unusable = np.array(["\0" in name or len(name.encode()) > MAX_LABEL for name in names])
    table.refuse(unusable[codes], "a label with a null character, or too long", "write a class name", "path")
    several = np.array([_are_several(name, distinct) for name in names])
    table.refuse(
        several[codes],
        "several labels of an image (multi-label classification) are not supported",
        "give each image one",
        "label",
    )
    if all(re.fullmatch(r"-?\d+\.0+", name) for name in names):  # from a table with numbers
        names = [name.partition(".")[0] for name in names]
    classes = sorted(set(names))
    place = {name: number for number, name in enumerate(classes)}
    return tuple(classes), np.array([place[name] for name in names], np.int32)[codes]


def _are_several(label: str, labels: Collection[str]) -> bool:
    """Whether a label is a list: in brackets, or others with separators between them."""
    if label.startswith("[") and label.endswith("]"):
        try:
            return isinstance(json.loads(label.replace("'", '"')), list)
        except ValueError:
            return False
    for separator in LABEL_SEPARATORS:
        parts = [part.strip() for part in label.split(separator)]
        if len(parts) > 1 and all(part in labels for part in parts):
            return True
    return False


def _splits(table: Table) -> np.ndarray | None:
    """The split of each row, an index into `SPLITS` or `NO_SPLIT` for an empty cell, int8; None if all are empty."""
    if "split" not in table.columns:
        return None
    names, codes = _trimmed(table.columns["split"])
    split_of = {name: SPLITS.index(SPLIT_FOLDERS.get(name.lower(), "train")) for name in names}
    known = [not name or name.lower() in SPLIT_FOLDERS for name in names]
    if not all(known):
        first = names[known.index(False)]
        table.refuse(
            ~np.array(known)[codes],
            "unknown split" + did_you_mean(first.lower(), SPLIT_FOLDERS),
            "it must be train, val or test, or empty to be chosen as set by split.*",
            "split",
        )
    values = np.array([split_of[name] if name else NO_SPLIT for name in names], np.int8)
    return None if (values == NO_SPLIT).all() else values[codes]


def _splits_by_folder(images: TableImages) -> np.ndarray | None:
    """The split of each image by its first folder, int8; None unless these are at least two of train, val and test."""
    import pyarrow.compute as pc

    inner = pc.binary_replace_slice(images.paths.array, 0, len(os.fsencode(images.around)), b"")
    coded = pc.list_element(pc.split_pattern(inner, b"/", max_splits=1), 0).dictionary_encode()
    names = [os.fsdecode(name).lower() for name in coded.dictionary.to_pylist()]
    if not all(name in SPLIT_FOLDERS for name in names):
        return None
    splits = np.array([SPLITS.index(SPLIT_FOLDERS[name]) for name in names], np.int8)
    return splits[coded.indices.to_numpy()] if len(set(splits.tolist())) > 1 else None


def _groups(table: Table) -> np.ndarray | None:
    """The number of each row's group, int32, -1 for an empty cell; None if the table has no groups."""
    if "group" not in table.columns:
        return None
    names, codes = _trimmed(table.columns["group"])
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    return np.array([number[name] if name else -1 for name in names], np.int32)[codes]
