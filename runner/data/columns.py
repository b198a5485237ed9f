"""Columns of an image table that holds a million images without a Python object for each."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


BLOCK = 65536
"""Rows that become objects at a time."""


class Paths(Sequence[str]):
    """A column of paths in one block of bytes. A path with bytes that are not UTF-8 is a text as `os.fsdecode` gives.

    Args:
        array: The paths as bytes, without nulls.
    """

    __slots__ = ("array",)

    def __init__(self, array: pa.LargeBinaryArray) -> None:
        self.array = array

    @classmethod
    def of(cls, paths: Iterable[str]) -> Paths:
        """A column of these paths. Raises ValueError if one holds a null character, which no file name does."""
        import pyarrow as pa

        texts = list(paths)
        content = np.frombuffer(os.fsencode("\0".join(texts)), np.uint8)
        ends = np.flatnonzero(content == 0)
        if len(ends) != max(0, len(texts) - 1):
            raise ValueError("a path holds a null character")
        offsets = np.zeros(len(texts) + 1, np.int64)
        if texts:
            offsets[1:-1] = ends - np.arange(len(ends))
            offsets[-1] = len(content) - len(ends)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(content[content != 0])]
        return cls(pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(texts), buffers))

    @classmethod
    def joined(cls, parts: Sequence[Paths]) -> Paths:
        """The paths of several columns, one after the other."""
        import pyarrow as pa

        return cls(pa.concat_arrays([part.array for part in parts])) if parts else cls.of(())

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Paths: ...
    def __getitem__(self, index: int | slice) -> str | Paths:
        if isinstance(index, slice):
            return Paths(self.array[index])
        return os.fsdecode(self.array[int(index)].as_py())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK].to_list()

    def to_list(self) -> list[str]:
        """All paths as texts."""
        import pyarrow as pa

        try:
            texts: list[str] = self.array.cast(pa.large_string()).to_numpy(zero_copy_only=False).tolist()
        except pa.ArrowInvalid:  # bytes that are not UTF-8
            texts = [os.fsdecode(path) for path in self.array.to_pylist()]
        return texts

    def iter_bytes(self) -> Iterator[bytes]:
        """The paths as bytes; a block of them at a time becomes objects."""
        for start in range(0, len(self), BLOCK):
            yield from self.array[start : start + BLOCK].to_numpy(zero_copy_only=False).tolist()

    def take(self, indices: np.ndarray) -> Paths:
        """The paths at these indices, or where a mask is true."""
        import pyarrow as pa

        if indices.dtype == bool:
            return Paths(self.array.filter(pa.array(indices)))
        return Paths(self.array.take(pa.array(indices)))

    def positions(self, others: Paths) -> np.ndarray:
        """The index of each of `others` in this column, -1 where it is not in it: int64."""
        import pyarrow.compute as pc

        return pc.fill_null(pc.index_in(others.array, self.array), -1).to_numpy().astype(np.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Paths) and self.array.equals(other.array)

    def __hash__(self) -> int:
        raise TypeError("a column of paths is not hashable")

    def __repr__(self) -> str:
        return f"Paths({list(self[:3])}{f' … {len(self):,}' if len(self) > 3 else ''})"
