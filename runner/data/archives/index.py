"""The index of archives: where each member lies. It is kept in the cache folder and mapped into memory, not loaded."""

from __future__ import annotations

import json
import os
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from runner.data.columns import Paths
from runner.data.listing import STAMP
from runner.utils.atomic_files import atomic_write
from runner.utils.hashing import digest, digest_bytes

INDEX_VERSION = 1
"""Part of an index's name. Raise it when its content, or what is taken from archives, changes."""
FOLDER = "archives"
"""The folder in the cache folder."""
COLUMNS = {
    "name": np.int32, "archive": np.int32, "offset": np.int64, "stored": np.int64, "size": np.int64, "method": np.int16,
    "crc": np.int64, "time": np.int64, "key": np.uint32, "row": np.int32,
}  # fmt: skip
"""Numbers of each member, and (key, row) of each by the CRC-32 of its path, to look it up."""
DIGITS = 40
RAW, STORED, DEFLATED = -1, 0, 8
"""How a member is stored: as it is at its offset (tar), or behind a header there (zip), as it is or compressed."""


@dataclass(frozen=True)
class Archive:
    """A file that members are read from.

    Attributes:
        path: The file; an uncompressed copy of what the user has, if that is compressed.
        stamp: Of the file, as in `FileList`.
        source: Stamp of what the user has.
    """

    path: str
    stamp: tuple[int, ...]
    source: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Members:
    """n members of archives, sorted by path."""

    archives: tuple[Archive, ...]
    paths: Paths
    names: tuple[str, ...]
    """Folders of an archive, or classes of shards."""
    columns: dict[str, np.ndarray]
    """As in `COLUMNS`, without key and row. `name` is an index into `names`; `crc` is -1 if there is none."""

    def stamps(self) -> np.ndarray:
        """As in `FileList`: size and CRC-32 of a member with its time, or size and offset with the archive's times."""
        columns = self.columns
        source = np.array([archive.source for archive in self.archives], np.int64).reshape(-1, STAMP)
        times = source[columns["archive"], 1:3]
        raw = columns["method"] == RAW
        where = np.where(raw, columns["offset"], columns["crc"])
        second = np.where(raw, times[:, 0], columns["time"])
        third = np.where(raw, times[:, 1], -1)
        return np.stack([columns["size"], where, second, third], 1)


def file_stamp(path: Path | int) -> tuple[int, ...]:
    """The stamp of a file or file descriptor: size, modification and change time in ns, inode."""
    status = os.stat(path)
    return (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


def cached_path(cache: Path, root: Path, key: Sequence[Any], suffix: str) -> Path:
    """The file in the cache folder for something at `root`, of which `key` says what state it is in."""
    return cache / FOLDER / f"{digest(os.path.realpath(root))}-{digest(INDEX_VERSION, *key)}{suffix}"


def remove_older(path: Path) -> None:
    """Remove the files in the cache folder for earlier states of the same thing."""
    place = path.name.partition("-")[0]
    for other in path.parent.glob(f"{place}-*{path.suffix}"):
        if other != path:
            with suppress(OSError):
                other.unlink()


def write_index(path: Path, members: Members) -> Index:
    """Write an index: an Arrow file, and behind it a digest to detect damage. Indexes of earlier states are removed."""
    import pyarrow as pa

    keys = np.fromiter(map(crc32, members.paths.iter_bytes()), np.uint32, len(members.paths))
    rows = np.argsort(keys, kind="stable")
    columns = {**members.columns, "key": keys[rows], "row": rows}
    arrays = [pa.array(columns[name].astype(kind, copy=False)) for name, kind in COLUMNS.items()]
    about = json.dumps(
        {"archives": [asdict(archive) for archive in members.archives], "names": members.names}
    )
    table = pa.table([members.paths.array, *arrays], ["path", *COLUMNS]).replace_schema_metadata(
        {"about": about}
    )
    with atomic_write(path) as temporary:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=max(1, len(table)))
        with pa.memory_map(str(temporary)) as written:
            expected = digest_bytes(memoryview(written.read_buffer()))
        with temporary.open("ab") as file:
            file.write(expected.encode())
    remove_older(path)
    return open_index(path)


def read_index(path: Path) -> Index | None:
    """The index that `write_index` wrote; None if there is none, or if it is damaged."""
    import pyarrow as pa

    with suppress(OSError, ValueError, TypeError, LookupError, pa.ArrowException):
        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        if digest_bytes(memoryview(content[:-DIGITS])) == bytes(content[-DIGITS:]).decode():
            return open_index(path)
    return None


@lru_cache(maxsize=8)
def open_index(path: Path) -> Index:
    """An index that was checked before. Raises OSError if it is gone."""
    return Index(path)


class Index:
    """An index that is mapped into memory; `members` and look-ups share that."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        with pa.memory_map(str(path)) as file:
            content = file.read_buffer()
        self.path = path
        table = pa.ipc.open_file(content[:-DIGITS]).read_all().combine_chunks()
        about = json.loads(table.schema.metadata[b"about"])
        archives = tuple(
            Archive(one["path"], tuple(one["stamp"]), tuple(one["source"])) for one in about["archives"]
        )
        columns = {name: table[name].combine_chunks() for name in COLUMNS}
        paths = table["path"].combine_chunks()
        numbers = {name: column.to_numpy() for name, column in columns.items()}
        self.members = Members(archives, Paths(paths), tuple(about["names"]), numbers)
        ends, text = (memoryview(buffer or b"") for buffer in paths.buffers()[1:])
        self._ends = ends.cast("B").cast("q")
        self._text = text.cast("B")  # as signed bytes it would not be equal to `bytes`
        self._views = {name: memoryview(column) for name, column in numbers.items()}

    def find(self, path: bytes) -> tuple[Archive, int, int, int, int, int]:
        """A member: its archive, offset, stored size, size, method, and CRC-32 or -1. Raises LookupError."""
        views, key = self._views, crc32(path)
        keys, rows, ends = views["key"], views["row"], self._ends
        place = bisect_left(keys, key)
        while place < len(keys) and keys[place] == key:
            row = rows[place]
            if self._text[ends[row] : ends[row + 1]] == path:
                offset, stored, size = views["offset"][row], views["stored"][row], views["size"][row]
                archive = self.members.archives[views["archive"][row]]
                return archive, offset, stored, size, views["method"][row], views["crc"][row]
            place += 1
        raise LookupError(path)
