"""Reads members of archives where they lie."""

from __future__ import annotations

import errno
import os
import struct
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from runner.data.archives.index import DEFLATED, RAW, Archive, file_stamp, open_index

MAX_MEMBER = 1 << 30
"""Bytes. A larger member is no image, and is not read."""
OPEN_ARCHIVES = 64
"""Archives that a process keeps open."""
LOCAL_HEADER = struct.Struct("<4s2xHH16x2H")
"""Of a zip member: signature, flags, method, lengths of its name and of its extra field."""
EXTRA = 128
"""Bytes that the extra field of a zip member seldom exceeds."""


@dataclass(frozen=True)
class ArchiveFiles:
    """Members of one or more archives, by their path. Reading is safe in threads and processes: files are read at
    positions, and opened by each process.

    Args:
        root: What the user has: an archive, or a folder of them.
        base: What member paths are relative to, for messages.
        index: The index in the cache folder.
    """

    root: Path
    base: Path
    index: Path

    def read(self, path: str) -> bytes:
        """The content of a member. Raises OSError also if it is damaged, or larger than `MAX_MEMBER`."""
        try:
            archive, offset, stored, size, method, crc = open_index(self.index).find(os.fsencode(path))
        except LookupError:
            raise FileNotFoundError(errno.ENOENT, "not in the archive", self.shown(path)) from None
        if max(size, stored) > MAX_MEMBER:
            raise OSError(errno.EFBIG, "larger than 1 GiB", self.shown(path))
        handle = _opened(archive)
        try:
            if method == RAW:
                content = handle.read(offset, stored)
            else:
                content = handle.read_zipped(offset, stored, len(path), method)
                if method == DEFLATED:
                    content = _inflated(content, size)
            if len(content) != size or (crc >= 0 and zlib.crc32(content) != crc):
                raise ValueError("its size or checksum is wrong")
        except (ValueError, zlib.error) as error:
            raise OSError(errno.EIO, f"damaged in the archive ({error})", self.shown(path)) from None
        return content

    def shown(self, path: str) -> str:
        """The member as if the archive were a folder."""
        return str(self.base / path)


class _Handle:
    """An archive that is open until nobody uses it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, offset: int, size: int) -> bytes:
        """Raises ValueError if the archive ends before."""
        content = os.pread(self.number, size, offset)
        while len(content) < size:
            more = os.pread(self.number, size - len(content), offset + len(content))
            if not more:
                raise ValueError("the archive ends before it")
            content += more
        return content

    def read_zipped(self, offset: int, stored: int, name: int, method: int) -> bytes:
        """What is stored behind the header of a zip member. Its length is guessed: one read is mostly enough."""
        block = os.pread(self.number, LOCAL_HEADER.size + name + EXTRA + stored, offset)
        if len(block) < LOCAL_HEADER.size:
            raise ValueError("the archive ends before it")
        signature, flags, as_written, name_length, extra = LOCAL_HEADER.unpack_from(block)
        if signature != b"PK\3\4" or flags & 1 or as_written != method:
            raise ValueError("its header is wrong")
        start = LOCAL_HEADER.size + name_length + extra
        content = block[start : start + stored]
        return content if len(content) == stored else self.read(offset + start, stored)


@lru_cache(maxsize=OPEN_ARCHIVES)
def _opened(archive: Archive) -> _Handle:
    handle = _Handle(archive.path)
    if file_stamp(handle.number) != archive.stamp:
        raise OSError(errno.ESTALE, "the archive has changed since it was listed; start again", archive.path)
    return handle


def _inflated(content: bytes, size: int) -> bytes:
    """Raises ValueError or zlib.error unless the content expands to `size` bytes."""
    stream = zlib.decompressobj(-15)
    expanded = stream.decompress(content, size + 1)
    if not stream.eof or len(expanded) != size:
        raise ValueError("it has another size than it says")
    return expanded
