"""Archives that are damaged, or no archives, are refused in one sentence each."""

from __future__ import annotations

import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_makers import class_members, edited, jpeg, write_tar, write_zip

import runner.data.archives.plain_tar
import runner.data.archives.zip_members
from runner.data.archives.listing import list_archive
from runner.utils.console import Terminal

Refused = Callable[[Path], str]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("place", [0, 4, 8, 45])
def test_a_damaged_member_of_a_zip_file(tmp_path: Path, silent: Terminal, method: int, place: int) -> None:
    def edit(content: bytearray) -> None:
        content[place] ^= 0x41

    members = {"red/0.jpg": jpeg("red", 0), "red/1.jpg": b"1"}
    path = edited(write_zip(tmp_path / "a.zip", members, method), edit)
    files = list_archive(path, tmp_path / "cache", silent).files
    if place == 4:  # the version that is needed to extract does not matter
        assert files.read("red/0.jpg") == members["red/0.jpg"]
        return
    with pytest.raises(OSError, match="damaged in the archive"):
        files.read("red/0.jpg")
    assert files.read("red/1.jpg") == b"1"


@pytest.mark.parametrize("name", ["a.tar", "a.zip", "a.tar.gz"])
def test_every_incomplete_archive_is_refused(tmp_path: Path, refused: Refused, name: str) -> None:
    members = class_members(1)
    path = tmp_path / name
    if name == "a.zip":
        write_zip(path, members)
    else:
        write_tar(path, members, "w:gz" if name.endswith("gz") else "w")
    content = path.read_bytes()
    last = len(content.rstrip(b"\0")) if name == "a.tar" else len(content) - 1
    for size in [*range(0, last, 997), 512, 1024, last]:
        path.write_bytes(content[:size])
        assert re.search("not complete|is damaged|is empty|is of a kind", refused(path))


def test_a_tar_file_that_was_cut_between_members(tmp_path: Path, refused: Refused) -> None:
    path = write_tar(tmp_path / "a.tar", {"red/0.jpg": b"1", "red/1.jpg": b"2"})
    path.write_bytes(path.read_bytes()[:1024])
    assert "is not complete: it has no end mark; fetch or pack it again." in refused(path)


def test_a_damaged_header_does_not_hide_what_follows(tmp_path: Path, refused: Refused) -> None:
    def edit(content: bytearray) -> None:
        content[1024] ^= 1

    path = edited(write_tar(tmp_path / "a.tar", {f"red/{n}.jpg": b"1" for n in range(4)}), edit)
    assert "is damaged behind byte 1,024, or joined of several" in refused(path)


def test_joined_tar_files(tmp_path: Path, refused: Refused) -> None:
    path = write_tar(tmp_path / "a.tar", {"red/0.jpg": b"1"})
    path.write_bytes(path.read_bytes() * 2)
    assert "joined of several" in refused(path)


def test_headers_that_make_python_read_in_a_circle(tmp_path: Path, refused: Refused) -> None:
    """CVE-2025-8194: a negative size leads back to the start."""

    def edit(content: bytearray) -> None:
        header = content[512 * 2 : 512 * 3]
        header[124:136] = b"\xff" * 6 + (-1024 & (1 << 48) - 1).to_bytes(6, "big")
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        content[512 * 2 : 512 * 3] = header

    path = edited(write_tar(tmp_path / "a.tar", {"red/0.jpg": b"1", "red/1.jpg": b"2"}), edit)
    assert "is damaged" in refused(path)


def test_a_header_that_says_it_is_huge_is_not_read(tmp_path: Path, refused: Refused) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    assert "is damaged" in refused(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.zip", b"not a zip file" * 100),
        ("a.tar", b"not a tar file" * 100),
        ("a.tar", jpeg("red", 0)),
        ("a.tar.gz", b"\x1f\x8b" + b"x" * 100),
        ("a.tar.xz", b"\xfd7zXZ\0" + b"x" * 100),
        ("a.tar.bz2", b"BZh9" + b"x" * 100),
        ("a.tar.zst", b"\x28\xb5\x2f\xfd" + b"x" * 100),
        ("a.tar.gz", zlib.compress(b"x" * 100)),
        ("a.zip", b""),
        ("a.tar", b""),
    ],
)
def test_files_that_are_no_archives(tmp_path: Path, refused: Refused, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert re.search("not complete|damaged|is empty", refused(tmp_path / name))


@pytest.mark.parametrize("name", ["a.7z", "a.rar", "a.gz"])
def test_archives_that_are_not_read(tmp_path: Path, refused: Refused, name: str) -> None:
    (tmp_path / name).write_bytes(b"x" * 100)
    assert "is of a kind that is not read; unpack it, or pack its images as .zip or .tar" in refused(
        tmp_path / name
    )


def test_an_archive_that_is_missing_or_a_folder(tmp_path: Path, refused: Refused) -> None:
    assert "cannot be read (No such file or directory)" in refused(tmp_path / "a.zip")
    (tmp_path / "b.tar").mkdir()
    assert "cannot be read (Is a directory)" in refused(tmp_path / "b.tar")


def test_an_archive_that_changes_while_it_is_read(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", {"red/0.jpg": b"1"})
    real = runner.data.archives.listing.list_tar

    def changing(*arguments: Path) -> object:
        found = real(*arguments)
        with path.open("ab") as file:
            file.write(bytes(512))
        return found

    monkeypatch.setattr(runner.data.archives.listing, "list_tar", changing)
    assert "has changed while it was read" in refused(path)


def test_a_zip_file_in_a_self_extracting_program(tmp_path: Path, silent: Terminal) -> None:
    path = write_zip(tmp_path / "a.zip", {"red/0.jpg": b"1"})
    path.write_bytes(b"MZ" + bytes(1000) + path.read_bytes())
    assert list_archive(path, tmp_path / "cache", silent).files.read("red/0.jpg") == b"1"


@pytest.mark.slow
def test_many_members_of_zip64(tmp_path: Path, silent: Terminal) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in range(66_000):
            archive.writestr(zipfile.ZipInfo(f"red/{number:05}.jpg"), b"")
    found = list_archive(tmp_path / "a.zip", tmp_path / "cache", silent)
    assert len(found.paths) == 66_000
    assert io.BytesIO(found.files.read("red/65999.jpg")).read() == b""
