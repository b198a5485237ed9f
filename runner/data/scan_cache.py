"""The cache of scans: stamp and content digest of each image that was decoded once."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.data.columns import Paths
from runner.data.depth import NAMES as GRAY_TYPES
from runner.data.depth import GrayRange
from runner.data.files import FolderFiles, ImageFiles
from runner.data.images import DIGEST_BYTES
from runner.data.listing import STAMP
from runner.utils.atomic_files import atomic_write
from runner.utils.hashing import digest, digest_bytes

if TYPE_CHECKING:
    import pyarrow as pa

SCAN_VERSION = 5
"""Part of the cache key. Raise it when decoding, the digest or the content of the cache files changes."""
WHOLE = "scan.arrow"
"""The result of a finished scan; other files are parts of one that was interrupted."""
GRAY = b"gray"
SECOND = 1_000_000_000
"""In ns. Some file systems store times in steps of one or two seconds."""
MOST_OTHERS = 2_000_000
"""Images that are remembered beside those of the last scan: another table may name them."""


@dataclass(frozen=True, eq=False)
class KnownImages:
    """Images that were decoded before.

    Attributes:
        paths: n paths.
        stamps: n × 4, as in `FileList`.
        digests: n × 20 bytes.
        gray: The range of gray values of images of more than 8 bits, by index.
    """

    paths: Paths
    stamps: np.ndarray
    digests: np.ndarray
    gray: Mapping[int, GrayRange] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def find(self, paths: Paths, stamps: np.ndarray) -> np.ndarray:
        """The index of each path with this stamp; -1 for files that are unknown or have changed. int64."""
        is_same = self.paths == paths  # nothing came or went
        where = np.arange(len(paths)) if is_same else self.paths.positions(paths)
        same = where >= 0
        same[same] = (self.stamps[where[same]] == stamps[same]).all(axis=1)
        return np.where(same, where, -1)

    def others(self, paths: Paths) -> KnownImages:
        """The images that are not among these paths: at most `MOST_OTHERS`."""
        return self.take(np.flatnonzero(paths.positions(self.paths) < 0)[:MOST_OTHERS])

    def take(self, rows: np.ndarray) -> KnownImages:
        """The images at these indices."""
        place = np.full(len(self), -1)
        place[rows] = np.arange(len(rows))
        gray = {int(place[row]): value for row, value in self.gray.items() if place[row] >= 0}
        return KnownImages(self.paths.take(rows), self.stamps[rows], self.digests[rows], gray)


class ScanCache:
    """The scans of a dataset, in a folder of files that are written once.

    Args:
        cache: The folder of the cache.
        files: The dataset.
    """

    def __init__(self, cache: Path, files: ImageFiles) -> None:
        self.folder = (
            cache / "scans" / digest(SCAN_VERSION, type(files).__name__, os.path.realpath(files.root))
        )
        self._parts: list[Path] = []
        self._start = time.time_ns()
        self._is_folder = isinstance(files, FolderFiles)

    def read(self) -> KnownImages:
        """All images that are remembered. Damaged files are left out."""
        found = []
        with suppress(FileNotFoundError):
            # Parts first: of a path that several files have, the first counts.
            self._parts = sorted(self.folder.glob("*.arrow"), key=lambda path: path.name == WHOLE)
        for path in self._parts:
            with suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
                found.append(_from_bytes(path.read_bytes()))
        return found[0] if len(found) == 1 else _joined(found)

    def add(self, images: KnownImages) -> None:
        """Remember some more images of a scan that goes on."""
        path = self.folder / f"part-{secrets.token_hex(8)}.arrow"
        _write(path, self._settled(images))
        self._parts.append(path)

    @property
    def has_parts(self) -> bool:
        """Whether a scan was interrupted: then there are other files beside the one of a finished scan."""
        return any(path.name != WHOLE for path in self._parts)

    def replace(self, images: KnownImages, others: KnownImages) -> None:
        """Remember these images, those of other parts of the dataset, and no more."""
        images = self._settled(images)
        _write(self.folder / WHOLE, _joined([images, others]) if len(others) else images)
        for path in self._parts:
            if path.name != WHOLE:
                path.unlink(missing_ok=True)
        self._parts = []

    def _settled(self, images: KnownImages) -> KnownImages:
        """Without the files that may be rewritten and keep their stamp: new ones, where times are whole seconds."""
        if not self._is_folder:
            return images
        times = images.stamps[:, 1:3]
        is_coarse = (times % SECOND == 0).all(axis=1)
        is_new = times[:, 1] > self._start - 2 * SECOND
        rows = np.flatnonzero(~(is_coarse & is_new))
        return images if len(rows) == len(images) else images.take(rows)


def _write(path: Path, images: KnownImages) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(to_bytes(images))


def to_bytes(images: KnownImages) -> bytes:
    """The content of a cache file: a digest, to detect damage, and an Arrow table."""
    import pyarrow as pa

    digests = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(DIGEST_BYTES), len(images), [None, pa.py_buffer(np.ascontiguousarray(images.digests))]
    )
    columns = {
        "path": images.paths.array,
        "digest": digests,
        **{f"stamp{number}": pa.array(images.stamps[:, number]) for number in range(STAMP)},
    }
    gray = json.dumps(list(images.gray.items()))
    table = pa.table(columns).replace_schema_metadata({GRAY: gray.encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue().to_pybytes()
    return digest_bytes(content).encode() + b"\n" + content


def _from_bytes(content: bytes) -> KnownImages:
    """Raises ValueError, TypeError or LookupError for damaged content."""
    import pyarrow as pa

    expected, table = content[: 2 * DIGEST_BYTES], memoryview(content)[2 * DIGEST_BYTES + 1 :]
    if digest_bytes(table).encode() != expected:
        raise ValueError("damaged")
    try:
        with pa.ipc.open_stream(table) as reader:
            read = reader.read_all().combine_chunks()
        read.validate(full=True)
    except pa.ArrowException as error:  # not all of them are a ValueError
        raise ValueError("damaged") from error
    return _from_table(read)


def _from_table(table: pa.Table) -> KnownImages:
    import pyarrow as pa

    if not pa.types.is_large_binary(table["path"].type) or table["digest"].type != pa.binary(DIGEST_BYTES):
        raise ValueError("columns of other types")
    if any(column.null_count for column in table.columns):
        raise ValueError("nulls")
    stamps = [table[f"stamp{number}"].to_numpy() for number in range(STAMP)]
    if any(column.dtype != np.int64 for column in stamps):
        raise ValueError("stamps that are no whole numbers")
    digests = table["digest"].combine_chunks()
    start = digests.offset * DIGEST_BYTES
    content = np.frombuffer(digests.buffers()[1], np.uint8)[start : start + len(table) * DIGEST_BYTES]
    paths = table["path"].combine_chunks()
    gray = dict(_gray(row, len(table)) for row in json.loads((table.schema.metadata or {})[GRAY]))
    return KnownImages(Paths(paths), np.stack(stamps, 1), content.reshape(-1, DIGEST_BYTES), gray)


def _gray(row: Sequence[Any], count: int) -> tuple[int, GrayRange]:
    index, (kind, smallest, largest) = row
    if type(index) is not int or not 0 <= index < count or kind not in GRAY_TYPES:
        raise ValueError(row)
    if not type(smallest) is type(largest) is float:
        raise ValueError(row)
    return index, (kind, smallest, largest)


def _joined(parts: Sequence[KnownImages]) -> KnownImages:
    """All images of some parts."""
    paths = Paths.joined([part.paths for part in parts])
    if not parts:
        return KnownImages(paths, np.empty((0, STAMP), np.int64), np.empty((0, DIGEST_BYTES), np.uint8))
    starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
    gray = {
        int(start) + index: value
        for start, part in zip(starts, parts, strict=True)
        for index, value in part.gray.items()
    }
    return KnownImages(
        paths,
        np.concatenate([part.stamps for part in parts]),
        np.concatenate([part.digests for part in parts]),
        gray,
    )
