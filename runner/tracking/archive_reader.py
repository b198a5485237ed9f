"""Reads the file of an exported run. Nothing in it is trusted: all is checked before anything is written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from runner.tracking.run_archive import BLOCK, DESCRIPTION, FORMAT, VERSION, ArchivedFile, RunArchive
from runner.utils.atomic_files import make_folder
from runner.utils.errors import UserError
from runner.utils.text import one_line

LARGEST_DESCRIPTION = 1 << 28
"""Bytes; a study of a thousand trials has a tenth of it."""
LONGEST_ID = 64
DAMAGE = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
)
"""What Python's zip reader raises for damaged archives, those with a password, and unknown compression."""


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, RunArchive]]:
    """The archive and its content, after all was checked that can be before files are read.

    Raises `UserError` if it is no archive of this format, is damaged, or could write outside its folder, also where
    that is found in the block.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            content = _read_description(path, archive)
            _check_entries(archive, content)
            yield archive, content
    except FileNotFoundError as error:
        if error.filename != str(path):
            raise
        raise UserError(f"There is no {path}; give a file that ./launch.sh export-run wrote.") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a file that ./launch.sh export-run wrote.") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a place in the file that cannot be
            raise
        raise UserError(_damaged(path, "a file lies outside the archive")) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))[:100]
        raise UserError(_damaged(path, f"{where}: {one_line(first['msg'], 150)}")) from None
    except DAMAGE as error:
        raise UserError(_damaged(path, one_line(str(error), 200) or type(error).__name__)) from None


def extract(archive: zipfile.ZipFile, content: RunArchive, folder: Path) -> None:
    """Write all files below `folder`: RUN/artifacts/… and RUN/model/…; equal ones become one file with several names.

    Raises ValueError for a file that is not what the description says, and what Python's zip reader raises.
    """
    known: dict[str, Path] = {}
    for run in content.runs:
        model = run.model.files if run.model else ()
        for kind, files in (("artifacts", run.files), ("model", model)):
            make_folder(folder / run.id / kind)
            for file in files:
                target = folder / run.id / kind / file.path
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if file.entry in known:
                        _link(known[file.entry], target)
                    else:
                        _extract_file(archive, file, target)
                        known[file.entry] = target
                except (FileExistsError, NotADirectoryError, IsADirectoryError):
                    raise ValueError(f"two files are named {file.path}") from None


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here
        shutil.copyfile(source, target)


def _extract_file(archive: zipfile.ZipFile, file: ArchivedFile, target: Path) -> None:
    """Write a file; not a byte more than it says."""
    digest, left = hashlib.sha256(), file.bytes
    with archive.open(file.entry) as source, target.open("xb") as written:
        while block := source.read(BLOCK):
            left -= len(block)
            if left < 0:
                raise ValueError(f"{file.entry} is larger than it says")
            digest.update(block)
            written.write(block)
    if left or digest.hexdigest() != file.sha256:
        raise ValueError(f"{file.entry} is not what was exported")


def _read_description(path: Path, archive: zipfile.ZipFile) -> RunArchive:
    """The description of an archive. Raises `UserError` if it is another program's, or of a newer format."""
    foreign = UserError(f"{path} is no exported run; give a file that ./launch.sh export-run wrote.")
    if DESCRIPTION not in archive.namelist():
        raise foreign
    if archive.getinfo(DESCRIPTION).file_size > LARGEST_DESCRIPTION:
        raise ValueError(f"{DESCRIPTION} is larger than {LARGEST_DESCRIPTION >> 20} MiB")
    with archive.open(DESCRIPTION) as file:
        raw = file.read(LARGEST_DESCRIPTION + 1)
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError):
        raise foreign from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise foreign
    version = content.get("version")
    if type(version) is int and version > VERSION:
        raise UserError(
            f"{path} has format {version}, and this version of vgg-runner reads formats up to {VERSION}; update it."
        )
    if version != VERSION:
        raise ValueError(f"{version!r} is no version")
    return TypeAdapter(RunArchive).validate_python({"runs": content.get("runs")})


def _check_entries(archive: zipfile.ZipFile, content: RunArchive) -> None:
    """Raises ValueError unless the archive holds exactly the files that its description names."""
    ids = [run.id for run in content.runs]
    if not ids or len(set(ids)) < len(ids) or not all(map(_is_id, ids)):
        raise ValueError("the ids of its runs are not valid")
    if any(run.status not in ("FINISHED", "FAILED", "KILLED") for run in content.runs):
        raise ValueError("a run has an unknown status")
    infos = {info.filename: info for info in archive.infolist()}
    entries = content.entries
    if len(infos) < len(archive.infolist()):
        raise ValueError("two files have one name")
    if other := sorted(infos.keys() ^ {DESCRIPTION, *entries}):
        raise ValueError(f"{other[0]!r} is {'missing' if other[0] in entries else 'not part of a run'}")
    for run in content.runs:
        for file in run.all_files:
            if (file.bytes, file.sha256) != (entries[file.entry].bytes, entries[file.entry].sha256):
                raise ValueError(f"{file.entry} is described twice")
            if infos[file.entry].file_size != file.bytes:
                raise ValueError(f"{file.entry} has another size than {file.bytes}")
    for info in infos.values():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or info.is_dir():
            raise ValueError(f"{info.filename!r} is no file, but a link, a folder or a device")


def _is_id(text: str) -> bool:
    return text.isascii() and text.isalnum() and len(text) <= LONGEST_ID


def _damaged(path: Path, reason: str) -> str:
    return f"{path} is damaged, not complete, or not written by ./launch.sh export-run ({reason}); export it again."
