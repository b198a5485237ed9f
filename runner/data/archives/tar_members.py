"""The members of a tar file."""

from __future__ import annotations

import tarfile
from pathlib import Path

from runner.data.archives.members import MemberList, plain_path, refuse
from runner.utils.errors import UserError

KINDS = {
    tarfile.SYMTYPE: "a symbolic link", tarfile.LNKTYPE: "a link to something that is not in the archive",
    tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a pipe",
}  # fmt: skip
"""What is no file, by the type in its header."""
EXTENDED = frozenset((tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE))
"""Types of headers that only say something of the next member."""
MAX_EXTENDED = 1 << 20
"""Bytes of such a header; it is read into memory."""
CHUNK = 1 << 20


class _Header(tarfile.TarInfo):
    """A header, of which only what is needed here is read: that takes half the time of a million members."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        header = cls._usual(buf, encoding, errors) or super().frombuf(buf, encoding, errors)
        if header.size < 0 or (header.type in EXTENDED and header.size > MAX_EXTENDED):
            raise tarfile.InvalidHeaderError("a header with an impossible size")  # type: ignore[attr-defined]
        return header

    @classmethod
    def _usual(cls, block: bytes | bytearray, encoding: str, errors: str) -> _Header | None:
        """A plain file's header without anything unusual; None for another one."""
        if len(block) != tarfile.BLOCKSIZE or block[156:157] != tarfile.REGTYPE or block[345]:
            return None
        size, checksum = bytes(block[124:136]).rstrip(b" \0"), bytes(block[148:156]).rstrip(b" \0")
        if not (size.isdigit() and checksum.isdigit()):
            return None
        try:
            if sum(block) - sum(block[148:156]) + 8 * 32 != int(checksum, 8):
                return None
            header = cls(bytes(block[:100]).partition(b"\0")[0].decode(encoding, errors))
            header.size = int(size, 8)
        except ValueError:
            return None
        return header


def list_tar(path: Path, shown: Path) -> MemberList:
    """The files and folders of a tar file. Hard links are read as the files that they are links to.

    Args:
        path: The tar file, not compressed.
        shown: What messages call it.

    Raises `UserError` if it is damaged, not complete, or holds something that cannot be used.
    """
    members = MemberList()
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape", tarinfo=_Header) as tar:
            _read_headers(tar, members, shown)
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(
            f"{shown} is no tar archive, or it is damaged or not complete ({error}); fetch or pack it again."
        ) from None
    _check_end(path, shown, end)
    return members


def _read_headers(tar: tarfile.TarFile, members: MemberList, shown: Path) -> None:
    links: list[tuple[str, str]] = []
    after = -1
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        if info.size < 0 or info.offset <= after:
            raise tarfile.ReadError("headers in a circle")
        after = info.offset
        name = plain_path(shown, info.name)
        if name is None:
            continue
        if info.isdir():
            members.add_folder(name)
        elif info.islnk():
            links.append((name, info.linkname))
        elif info.isreg() and not info.issparse():
            members.add_file(name, info.offset_data, info.size, info.size)
        else:
            _refuse_kind(shown, info.name, KINDS.get(info.type, "of a kind that only some programs know"))
    places = {path: row for row, path in enumerate(members.paths)} if links else {}
    for name, target in links:
        if (row := places.get(plain_path(shown, target) or "", -1)) < 0:
            _refuse_kind(shown, name, KINDS[tarfile.LNKTYPE])
        members.repeat_file(name, row)
        places[name] = row


def _refuse_kind(shown: Path, name: str, kind: str) -> None:
    remedy = "leave it out, or pack the archive again with files (tar --dereference follows links)"
    refuse(shown, name, f"is {kind}", remedy)


def _check_end(path: Path, shown: Path, end: int) -> None:
    """Raises `UserError` unless nothing but zeros follows: Python's module takes a damaged header for the end."""
    with path.open("rb") as file:
        file.seek(end)
        rest = file.read(CHUNK)
        if len(rest) < tarfile.BLOCKSIZE:
            raise UserError(
                f"The archive {shown} is not complete: it has no end mark; fetch or pack it again."
            )
        while rest:
            if rest.count(0) != len(rest):
                raise UserError(
                    f"The archive {shown} is damaged behind byte {end:,}, or joined of several; fetch or pack it again."
                )
            rest = file.read(CHUNK)
