"""The image table: path, class, split, size and content digest of each image, in columns."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from runner.data.columns import BLOCK, Paths

SPLITS = ("train", "val", "test")
NO_SPLIT = -1
"""Stands for an image without a split, among indices into `SPLITS`."""
DIGEST_BYTES = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """An image: its path in the dataset, class name, split, size in bytes, digest of the file (40 hex digits)."""

    path: str
    label: str
    split: str
    size: int
    digest: str


@dataclass(frozen=True, eq=False)
class Images(Sequence[Entry]):
    """A table of n images. As a sequence it makes an `Entry` of a row when it is asked for."""

    paths: Paths
    classes: tuple[str, ...]
    """Names of all classes, sorted; a selection keeps them."""
    labels: np.ndarray
    """n class indices, int32."""
    splits: np.ndarray
    """n indices into `SPLITS`, int8."""
    sizes: np.ndarray
    """n sizes in bytes, int64."""
    digests: np.ndarray
    """n × 20 bytes of content digests, uint8."""

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Images:
        """The table of some images, in their order."""
        rows = list(entries)
        classes = tuple(sorted({row.label for row in rows}))
        index = {name: number for number, name in enumerate(classes)}
        return cls(
            Paths.of(row.path for row in rows),
            classes,
            np.array([index[row.label] for row in rows], np.int32),
            np.array([SPLITS.index(row.split) for row in rows], np.int8),
            np.array([row.size for row in rows], np.int64),
            pack_digests(row.digest for row in rows),
        )

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Images: ...
    def __getitem__(self, index: int | slice) -> Entry | Images:
        if isinstance(index, slice):
            return self.take(np.arange(*index.indices(len(self))))
        return Entry(
            self.paths[index],
            self.classes[self.labels[index]],
            SPLITS[self.splits[index]],
            int(self.sizes[index]),
            self.digests[index].tobytes().hex(),
        )

    def __iter__(self) -> Iterator[Entry]:
        for block in self.blocks():
            yield from itertools.starmap(Entry, block)

    def blocks(self) -> Iterator[list[tuple[str, str, str, int, str]]]:
        """The rows (path, class, split, size, digest), some at a time."""
        for start in range(0, len(self), BLOCK):
            part = slice(start, start + BLOCK)
            yield list(
                zip(
                    self.paths[part].to_list(),
                    [self.classes[label] for label in self.labels[part].tolist()],
                    [SPLITS[split] for split in self.splits[part].tolist()],
                    self.sizes[part].tolist(),
                    _hex_digits(self.digests[part]),
                    strict=True,
                )
            )

    def take(self, indices: np.ndarray | Sequence[int]) -> Images:
        """The images at these indices, or where a mask is true, in that order."""
        chosen = np.asarray(indices)
        if not len(chosen):
            chosen = chosen.astype(np.int64)
        columns = (self.labels, self.splits, self.sizes, self.digests)
        return Images(self.paths.take(chosen), self.classes, *(column[chosen] for column in columns))

    def digest(self, with_splits: bool = True) -> str:
        """`hashing.digest` of the list of rows (path, class, split, digest), or of them without the split."""
        labels, splits = ([json.dumps(name) for name in names] for names in (self.classes, SPLITS))
        hashed = hashlib.blake2b(b"[[", digest_size=DIGEST_BYTES)
        for start in range(0, len(self), BLOCK):
            part = slice(start, start + BLOCK)
            columns = [
                _json_texts(self.paths[part].to_list()),
                [labels[label] for label in self.labels[part].tolist()],
                [splits[split] for split in self.splits[part].tolist()],
                [f'"{digits}"' for digits in _hex_digits(self.digests[part])],
            ]
            if not with_splits:
                del columns[2]
            rows = ",".join([f"[{','.join(row)}]" for row in zip(*columns, strict=True)])
            hashed.update(("," * (start > 0) + rows).encode())
        hashed.update(b"]]")
        return hashed.hexdigest()

    @property
    def digest_values(self) -> np.ndarray:
        """The digests as n values that can be compared and sorted."""
        return np.ascontiguousarray(self.digests).view(f"S{DIGEST_BYTES}")[:, 0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Images):
            return NotImplemented
        return (
            self.paths == other.paths
            and [self.classes[label] for label in np.unique(self.labels)]
            == [other.classes[label] for label in np.unique(other.labels)]
            and np.array_equal(_ranks(self.labels), _ranks(other.labels))
            and np.array_equal(self.splits, other.splits)
            and np.array_equal(self.sizes, other.sizes)
            and np.array_equal(self.digests, other.digests)
        )

    def __hash__(self) -> int:
        raise TypeError("an image table is not hashable")


def _ranks(labels: np.ndarray) -> np.ndarray:
    """Labels counted among those that occur: two tables may list other classes."""
    return np.unique(labels, return_inverse=True)[1]


def _json_texts(texts: Sequence[str]) -> list[str]:
    """The texts as JSON."""
    joined = "".join(texts)
    if joined.isascii() and joined.isprintable() and '"' not in joined and "\\" not in joined:
        return [f'"{text}"' for text in texts]  # three times as fast
    return [json.dumps(text) for text in texts]


def _hex_digits(digests: np.ndarray) -> list[str]:
    """n × 20 bytes as n texts."""
    digits, width = digests.tobytes().hex(), 2 * DIGEST_BYTES
    return [digits[start : start + width] for start in range(0, len(digits), width)]


def pack_digests(digests: Iterable[str]) -> np.ndarray:
    """Digests of 40 hex digits as n × 20 bytes, uint8."""
    content = bytes.fromhex("".join(digests))
    return np.frombuffer(content, np.uint8).reshape(-1, DIGEST_BYTES)
