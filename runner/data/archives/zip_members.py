"""The members of a zip file."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import numpy as np

from runner.data.archives.files import LOCAL_HEADER
from runner.data.archives.index import DEFLATED, STORED
from runner.data.archives.members import MemberList, plain_path, refuse
from runner.utils.errors import UserError

ENCRYPTED, UTF8 = 0x1, 0x800
"""Bits of a member's flags."""
UNIX = 3
"""Of the systems that made an archive, the one that tells links and devices."""
BOMB_BYTES, BOMB_RATIO = 1 << 28, 100
"""A member that becomes so large, and so many times its compressed size, is no image."""


def list_zip(path: Path) -> MemberList:
    """The files and folders of a zip file.

    Raises `UserError` if it is damaged, or holds something that cannot be used.
    """
    members = MemberList()
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            end = archive.start_dir
            archive.NameToInfo.clear()
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        OverflowError,
        EOFError,
        struct.error,
    ) as error:
        raise UserError(
            f"{path} is no zip archive, or it is damaged or not complete ({error}); fetch or pack it again."
        ) from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise UserError(f"{path} is damaged or not complete; fetch or pack it again.") from None
    infos.reverse()
    while infos:
        _add(path, infos.pop(), members)
    _check_places(path, members, end)
    return members


def _add(path: Path, info: zipfile.ZipInfo, members: MemberList) -> None:
    name = _name(info)
    clean = plain_path(path, name)
    if clean is None:
        return
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == UNIX else 0
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        what = "a symbolic link" if kind == stat.S_IFLNK else "neither a file nor a folder"
        refuse(
            path,
            name,
            f"is {what}",
            "leave it out, or pack the archive again with files (zip -r follows links)",
        )
    if name.endswith("/"):
        members.add_folder(clean)
        return
    if info.flag_bits & ENCRYPTED:
        refuse(path, name, "is encrypted", "pack it again without a password")
    if info.compress_type not in (STORED, DEFLATED):
        method = zipfile.compressor_names.get(info.compress_type, f"method {info.compress_type}")  # type: ignore[attr-defined]
        refuse(path, name, f"is compressed by {method}", "pack it again with deflate, or without compression")
    if info.file_size > BOMB_BYTES and info.file_size > BOMB_RATIO * info.compress_size:
        refuse(path, name, "expands to more than 100 times its size", "it is no image; leave it out")
    if info.compress_type == STORED and info.file_size != info.compress_size:
        refuse(path, name, "has two different sizes", "the archive is damaged; fetch or pack it again")
    time = int("".join(f"{part:02}" for part in info.date_time))
    members.add_file(
        clean, info.header_offset, info.compress_size, info.file_size, (info.compress_type, info.CRC, time)
    )


def _name(info: zipfile.ZipInfo) -> str:
    """A member's name. Without the flag that says so it may still be UTF-8; if not, it is of code page 437."""
    name = info.orig_filename
    if info.flag_bits & UTF8:
        return name
    try:
        return name.encode("cp437").decode("utf-8")
    except UnicodeError:
        return name


def _check_places(path: Path, members: MemberList, end: int) -> None:
    """Raises `UserError` if members overlap, as in bombs, or lie outside the archive."""
    columns = members.columns()
    order = np.argsort(columns["offset"], kind="stable")
    starts = columns["offset"][order]
    stops = starts + LOCAL_HEADER.size + columns["stored"][order]
    wrong = np.flatnonzero((stops > np.append(starts[1:], end)[: len(stops)]) | (starts < 0))
    if len(wrong):
        name = members.paths[order[wrong[0]]]
        refuse(
            path, name, "overlaps other content", "the archive is damaged or made to do harm; pack it again"
        )
