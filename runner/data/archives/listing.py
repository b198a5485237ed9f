"""Archives as datasets: .zip and .tar, also compressed. Their members are read where they lie, never unpacked."""

from __future__ import annotations

import os
from pathlib import Path

from runner.data.archives.files import ArchiveFiles
from runner.data.archives.index import Archive, Index, cached_path, file_stamp, read_index, write_index
from runner.data.archives.plain_tar import opener_of, plain_tar
from runner.data.archives.tar_members import list_tar
from runner.data.archives.zip_members import list_zip
from runner.data.listing import FileList
from runner.utils.console import Terminal, format_bytes
from runner.utils.errors import UserError

TAR_SUFFIXES = (
    ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tbz", ".tar.xz", ".txz", ".tar.zst", ".tzst",
)  # fmt: skip
OTHER_SUFFIXES = (
    ".7z", ".rar", ".tar.lz", ".tar.lz4", ".tar.z", ".cab", ".iso", ".gz", ".bz2", ".xz", ".zst",
)  # fmt: skip
"""Of archives that are not read."""
LARGE = 1 << 28
"""Bytes of an archive whose index takes long enough to say so."""


def is_archive(path: Path) -> bool:
    """Whether a name is one of an archive, also of one that `list_archive` refuses."""
    return path.name.lower().endswith((".zip", *TAR_SUFFIXES, *OTHER_SUFFIXES))


def is_tar(path: Path) -> bool:
    """Whether a name is one of a tar file that may be a WebDataset shard."""
    return path.suffix.lower() == ".tar"


def list_archive(path: Path, cache: Path, terminal: Terminal) -> FileList:
    """The files of an archive. The index of its members is kept in the cache folder.

    Raises `UserError` if it cannot be read, is damaged, or holds something that cannot be used: unsafe names, links,
    encrypted members.
    """
    index = _index(path, cache, terminal)
    members = index.members
    return FileList(
        ArchiveFiles(path, path, index.path),
        members.paths,
        members.names,
        members.columns["name"],
        members.stamps(),
    )


def _index(path: Path, cache: Path, terminal: Terminal) -> Index:
    archive, is_zip = opened_archive(path, cache, terminal)
    file = cached_path(cache, path, (archive.stamp, archive.source, archive.path), ".index")
    if (known := read_index(file)) is not None:
        return known
    if archive.stamp[0] >= LARGE:
        terminal.line(f"Reading the index of {path} ({format_bytes(archive.stamp[0])}) …")
    members = (list_zip(path) if is_zip else list_tar(Path(archive.path), path)).members(archive, path)
    if file_stamp(Path(archive.path)) != archive.stamp:
        raise UserError(f"The archive {path} has changed while it was read; start again when it is complete.")
    return write_index(file, members)


def opened_archive(path: Path, cache: Path, terminal: Terminal) -> tuple[Archive, bool]:
    """The file to read an archive's members from, and whether it is a zip file by its name.

    Raises `UserError` if it is missing, empty, or named otherwise.
    """
    try:
        source = file_stamp(path)
        is_compressed = opener_of(path) is not None
    except OSError as error:
        raise UserError(
            f"The archive {path} cannot be read ({error.strerror}); check its path and mode."
        ) from None
    name = path.name.lower()
    if not source[0]:
        raise UserError(f"The archive {path} is empty; fetch or pack it again.")
    if not name.endswith((".zip", *TAR_SUFFIXES)):
        raise UserError(
            f"{path} is of a kind that is not read; unpack it, or pack its images as .zip or .tar, best without"
            " compression."
        )
    is_zip = name.endswith(".zip")
    plain = plain_tar(path, cache, terminal) if is_compressed and not is_zip else path
    return Archive(os.path.abspath(plain), file_stamp(plain), source), is_zip
