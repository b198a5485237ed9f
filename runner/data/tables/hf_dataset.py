"""Hugging Face datasets that `save_to_disk` wrote. They are read as they lie, memory-mapped, by pyarrow alone.

Such a folder holds state.json (its Arrow files), dataset_info.json (the type of each column) and the Arrow files
themselves; a `DatasetDict` is a folder of such folders with dataset_dict.json, the names of its splits.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from runner.config.data_schema import DataConfig
from runner.data.columns import Paths
from runner.data.images import SPLITS
from runner.data.layouts.layout import SPLIT_FOLDERS
from runner.data.listing import STAMP, Listing
from runner.data.tables.reader import as_text
from runner.utils.errors import UserError
from runner.utils.text import counted, did_you_mean, joined, named, one_line

if TYPE_CHECKING:
    import pyarrow as pa

SPLITS_FILE, STATE_FILE, INFO_FILE = "dataset_dict.json", "state.json", "dataset_info.json"
FILE_NAME = r"\w[\w.-]{0,200}"
"""Of a split's folder, or of an Arrow file."""
DIGITS = 8
"""Of an image's number in its path."""
OPEN_DATASETS = 16
"""Datasets that a process keeps open."""


@dataclass(frozen=True)
class SavedImages:
    """The images of a saved dataset. A path is the number of a row, as `train/00000012`, from 0.

    Args:
        root: The folder of the dataset.
        column: The name of the column with the images.
        saved: When it was saved, in ns.
    """

    root: Path
    column: str
    saved: int

    def read(self, path: str) -> bytes:
        """The content of the image file in a row. Raises OSError, also if it is damaged."""
        part, _, number = path.rpartition("/")
        try:
            value = _opened(str(self.root / part), self.saved).column(self.column)[int(number)].as_py()
        except (LookupError, ValueError, UserError) as error:
            raise OSError(errno.EIO, f"damaged row ({one_line(str(error), 200)})", path) from None
        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
        if isinstance(value, str):  # a file that was not copied into the dataset
            return (self.root / value).read_bytes()
        return value or b""

    def shown(self, path: str) -> str:
        return str(self.root / path)


@dataclass(frozen=True, eq=False)
class _Part:
    """A dataset: one split of a `DatasetDict`, or all of a `Dataset`."""

    name: str
    """Its folder; empty for a `Dataset`."""
    table: pa.Table
    features: Mapping[str, Any]
    """The type of each column, as the library describes it."""
    saved: int
    """When, in ns."""


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one that `save_to_disk` of Hugging Face's `datasets` wrote, perhaps not whole."""
    if (folder / SPLITS_FILE).is_file():
        return True
    # Other programs write files with these names too.
    return any((folder / name).is_file() for name in (STATE_FILE, INFO_FILE)) and any(folder.glob("*.arrow"))


def list_saved_dataset(root: Path, data: DataConfig) -> Listing:
    """The images of a saved dataset: its columns image and label, or as data.columns says.

    Raises `UserError` if it is damaged, lacks a column, has labels that are lists, or images without a label.
    """
    import pyarrow as pa

    remarks: list[str] = []
    parts, splits = _parts(root, remarks)
    image = _column(root, parts[0], data, "image", "Image")
    label = _column(root, parts[0], data, "label", "ClassLabel")
    texts = {part: text for part in parts if (text := _labels(root, part, image, label, remarks)) is not None}
    if not texts:
        raise UserError(f"No image of {root} has a label; set data.root to a dataset with labels.")
    coded = pa.concat_arrays([*texts.values()]).dictionary_encode()
    names = coded.dictionary.to_pylist()
    classes = sorted(names)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[name] for name in names], np.int32)[coded.indices.to_numpy()]
    given, layout = None, "a saved Hugging Face dataset"
    if splits is not None:
        given = np.concatenate(
            [np.full(len(text), splits[part.name], np.int8) for part, text in texts.items()]
        )
        layout += f" with {joined([part.name for part in texts])}"
    return Listing(
        SavedImages(root, image, max(part.saved for part in texts)),
        Paths.joined([_paths(part) for part in texts]),
        np.concatenate([_stamps(root, part, image) for part in texts]),
        tuple(classes),
        labels,
        given,
        layout=layout,
        remarks=tuple(remarks),
    )


def _parts(root: Path, remarks: list[str]) -> tuple[list[_Part], dict[str, int] | None]:
    """The datasets in a folder, sorted by the paths of their images, and their splits; None for a single one."""
    if not (root / SPLITS_FILE).is_file():
        return [_part(root, "")], None
    names = _json(root / SPLITS_FILE).get("splits")
    if not isinstance(names, list) or not all(
        isinstance(name, str) and re.fullmatch(FILE_NAME, name) for name in names
    ):
        raise UserError(f"{root / SPLITS_FILE} names no splits; save the dataset again.")
    splits = {
        name: SPLITS.index(SPLIT_FOLDERS[name.lower()]) for name in names if name.lower() in SPLIT_FOLDERS
    }
    if not splits and len(names) == 1:
        return [_part(root, names[0])], None
    if not splits:
        raise UserError(
            f"The splits of {root} ({named(names)}) are not train, validation and test; save them with these names."
        )
    if others := [name for name in names if name not in splits]:
        remarks.append(
            f"not used: {counted(len(others), 'split')} that is not train, validation or test ({named(others)})"
        )
    return [_part(root, name) for name in sorted(splits, key=lambda name: f"{name}/")], splits


def _part(root: Path, name: str) -> _Part:
    folder = root / name
    _json(folder / STATE_FILE)
    features = _json(folder / INFO_FILE).get("features")
    saved = os.stat(folder / STATE_FILE).st_mtime_ns
    if not isinstance(features, dict):
        raise UserError(f"{folder / INFO_FILE} does not say what the columns are; save the dataset again.")
    return _Part(name, _opened(str(folder), saved), features, saved)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except FileNotFoundError:
        raise UserError(
            f"{path.parent} is not a whole dataset: there is no {path.name}; write it by save_to_disk of Hugging"
            " Face's datasets, and set data.root to that folder."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(str(error), 200)}); save the dataset again."
        ) from None
    return content


@lru_cache(maxsize=OPEN_DATASETS)
def _opened(folder: str, saved: int) -> pa.Table:
    """The table in a folder, memory-mapped. Raises `UserError` if it is not whole. `saved` tells versions apart."""
    import pyarrow as pa

    tables = []
    for path in _arrow_files(Path(folder)):
        try:
            table = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            table.validate(full=True)  # a damaged file must not end the process
            tables.append(table)
        except (pa.ArrowException, OSError) as error:
            raise UserError(
                f"{path} is missing, damaged or not complete ({one_line(str(error), 200)}); save the dataset again."
            ) from None
    try:
        return pa.concat_tables(tables)
    except pa.ArrowException as error:
        raise UserError(
            f"The files of {folder} have other columns ({one_line(str(error), 200)}); save it again."
        ) from None


def _arrow_files(folder: Path) -> list[Path]:
    state = _json(folder / STATE_FILE)
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        names = []
    if not names or not all(re.fullmatch(FILE_NAME, name) for name in names):
        raise UserError(f"{folder / STATE_FILE} names no Arrow files of its folder; save the dataset again.")
    if state.get("_indices_data_files"):
        raise UserError(
            f"{folder} was saved by an old version of datasets; load and save it with a newer one."
        )
    return [folder / name for name in names]


def _column(root: Path, part: _Part, data: DataConfig, role: str, kind: str) -> str:
    """The name of a column: as set, as its role, or the only one of its kind."""
    name = data.columns.get(role, role)
    columns = part.table.column_names
    if name in columns:
        return name
    alike = [
        name
        for name, feature in part.features.items()
        if isinstance(feature, dict) and feature.get("_type") == kind and name in columns
    ]
    if role not in data.columns and len(alike) == 1:
        return alike[0]
    raise UserError(
        f"{root} has no column {name}{did_you_mean(name, columns)}; its columns are {named(columns, 20)}; name the"
        f" right one by data.columns, as {{{role}: NAME}}."
    )


def _labels(
    root: Path, part: _Part, image: str, label: str, remarks: list[str]
) -> pa.LargeStringArray | None:
    """The label of each row; None, and a remark, if none has one. Raises `UserError` if only some have."""
    import pyarrow.compute as pc

    folder = root / part.name
    for name in (image, label):
        if name not in part.table.column_names:
            raise UserError(f"{folder} has no column {name}, but another split has; save them alike.")
    _check_images(folder, part.table.schema.field(image))
    text = _label_names(folder, part, label)
    missing = pc.equal(text, "")
    if (count := pc.sum(missing).as_py() or 0) and count < len(text):
        row = pc.index(missing, True).as_py()
        raise UserError(
            f"{folder}, row {row:,} (from 0): it has no {label}, as {count:,} of {len(text):,}; leave them out, or give"
            " them one."
        )
    if count == len(text):
        remarks.append(f"not used: {counted(count, 'image')} without a label in {folder.name}")
        return None
    return text


def _check_images(folder: Path, field: pa.Field) -> None:
    """Raises `UserError` if a column does not hold image files."""
    import pyarrow as pa

    kind, types = field.type, pa.types
    holds_files = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if not (holds_files or types.is_string(kind) or types.is_binary(kind) or types.is_large_binary(kind)):
        raise UserError(
            f"{folder}, column {field.name}: its values are {one_line(str(kind), 100)}, not image files; save it as"
            " datasets.Image()."
        )


def _label_names(folder: Path, part: _Part, label: str) -> pa.LargeStringArray:
    """The label of each row as text; empty if it has none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = part.table.column(label)
    feature = part.features.get(label)
    names = feature.get("names") if isinstance(feature, dict) else None
    if names is None or not pa.types.is_integer(values.type):
        return as_text(folder, "label", values, label)
    codes = pc.fill_null(values.cast(pa.int64()), -1).to_numpy()  # -1: without a label
    if len(codes) and not -1 <= codes.min() <= codes.max() < len(names):
        raise UserError(f"{folder}, column {label}: a label has no name; save the dataset again.")
    texts = pa.array([*map(str, names), ""], pa.large_string())
    return texts.take(pa.array(np.where(codes < 0, len(names), codes)))


def _paths(part: _Part) -> Paths:
    import pyarrow as pa
    import pyarrow.compute as pc

    numbers = pc.utf8_lpad(pa.array(np.arange(part.table.num_rows)).cast(pa.large_string()), DIGITS, "0")
    prefix = f"{part.name}/" if part.name else ""
    text = [pa.scalar(each, pa.large_string()) for each in (prefix, "")]
    return Paths(pc.binary_join_element_wise(text[0], numbers, text[1]).cast(pa.large_binary()))


def _stamps(root: Path, part: _Part, image: str) -> np.ndarray:
    """n × 4, as in `FileList`: a row has its size, when and how large the dataset was saved, and its column; an image
    that lies in a file of its own has that file's stamp."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = part.table.column(image)
    paths = values if pa.types.is_string(values.type) else None
    if pa.types.is_struct(values.type):
        has_paths = values.type.get_field_index("path") >= 0
        content = pc.struct_field(values, "bytes")
        if has_paths:
            nothing = pa.scalar(None, pa.string())
            paths = pc.if_else(
                pc.is_null(content), pc.struct_field(values, "path").cast(pa.string()), nothing
            )
        values = content
    stamps = np.empty((len(values), STAMP), np.int64)
    stamps[:, 0] = pc.fill_null(pc.binary_length(values), 0).to_numpy()
    stamps[:, 1:] = part.saved, part.table.num_rows, crc32(image.encode())
    if paths is not None:
        outside = np.flatnonzero(pc.is_valid(paths).to_numpy())
        for row, path in zip(outside, paths.drop_null().to_pylist(), strict=True):
            with suppress(OSError, ValueError):  # it is missing: the scan says so
                status = os.stat(root / path)
                stamps[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
    return stamps
