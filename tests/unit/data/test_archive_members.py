"""Archives that cannot be used: each is refused with one sentence that names the archive, and the member."""

from __future__ import annotations

import re
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_makers import edited, write_special, write_tar, write_zip

import runner.data.archives.plain_tar
import runner.data.archives.zip_members
from runner.data.archives.listing import list_archive
from runner.utils.console import Terminal

Refused = Callable[[Path], str]


# Names


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("../red/0.jpg", "leads out of the archive"),
        ("red/../../0.jpg", "leads out of the archive"),
        ("red/..", "leads out of the archive"),
        ("/etc/0.jpg", "is an absolute path"),
        ("//server/0.jpg", "is an absolute path"),
        ("C:/red/0.jpg", "begins with a drive letter"),
        ("red\\0.jpg", "has a backslash"),
        ("..\\0.jpg", "has a backslash"),
        ("../.hidden/0.jpg", "leads out of the archive"),
    ],
)
def test_names_that_lead_elsewhere(tmp_path: Path, refused: Refused, name: str, problem: str) -> None:
    members = {"red/0.jpg": b"1", name: b"2"}
    for path in (write_tar(tmp_path / "a.tar", members), write_zip(tmp_path / "a.zip", members)):
        message = refused(path)
        assert f"{problem}; pack it again with relative paths and slashes." in message
        assert f"'{name}'" in message


def test_a_null_byte_in_a_name(tmp_path: Path, refused: Refused) -> None:
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("x")
        info.pax_headers = {"path": "red/0\0.jpg"}
        tar.addfile(info)
    write_zip(tmp_path / "a.zip", {"red/0x.jpg": b"1"})
    content = (tmp_path / "a.zip").read_bytes().replace(b"red/0x.jpg", b"red/0\0.jpg")
    (tmp_path / "a.zip").write_bytes(content)
    for name in ("a.tar", "a.zip"):
        assert "'red/0\\x00.jpg' has a null byte" in refused(tmp_path / name)


@pytest.mark.parametrize("names", [("red/0.jpg", "red/0.jpg"), ("red/0.jpg", "./red//0.jpg")])
def test_a_member_that_is_there_twice(tmp_path: Path, refused: Refused, names: tuple[str, str]) -> None:
    with (
        warnings.catch_warnings(action="ignore"),
        tarfile.open(tmp_path / "a.tar", "w") as tar,
        zipfile.ZipFile(tmp_path / "a.zip", "w") as archive,
    ):
        for name in names:
            tar.addfile(tarfile.TarInfo(name))
            archive.writestr(name, b"1")
    for name in ("a.tar", "a.zip"):
        assert "'red/0.jpg' is in it twice; pack it again, with each file once." in refused(tmp_path / name)


def test_a_name_of_a_file_and_of_a_folder(tmp_path: Path, refused: Refused) -> None:
    members = {"red": b"1", "red/0.jpg": b"2"}
    for path in (write_tar(tmp_path / "a.tar", members), write_zip(tmp_path / "a.zip", members)):
        assert "'red' is a file and a folder" in refused(path)


# Kinds of members


@pytest.mark.parametrize(
    ("kind", "target", "problem"),
    [
        (tarfile.SYMTYPE, "00.jpg", "is a symbolic link"),
        (tarfile.SYMTYPE, "/etc/passwd", "is a symbolic link"),
        (tarfile.LNKTYPE, "/etc/passwd", "is an absolute path"),
        (tarfile.LNKTYPE, "../../secret", "leads out of the archive"),
        (tarfile.LNKTYPE, "red/7.jpg", "is a link to something that is not in the archive"),
        (tarfile.CHRTYPE, "", "is a device"),
        (tarfile.BLKTYPE, "", "is a device"),
        (tarfile.FIFOTYPE, "", "is a pipe"),
        (tarfile.GNUTYPE_SPARSE, "", "is of a kind that only some programs know"),
        (b"Z", "", "is of a kind that only some programs know"),
    ],
)
def test_members_of_tar_files_that_are_no_files(
    tmp_path: Path, refused: Refused, kind: bytes, target: str, problem: str
) -> None:
    assert problem in refused(write_special(tmp_path / "a.tar", "red/link.jpg", kind, target))


def test_links_in_zip_files(tmp_path: Path, refused: Refused) -> None:
    message = refused(write_zip(tmp_path / "a.zip", {"red/0.jpg": b"1", "red/link.jpg -> ": b"/etc/passwd"}))
    assert "'red/link.jpg' is a symbolic link; leave it out, or pack" in message


def test_a_link_that_a_system_made_is_passed_over(tmp_path: Path, silent: Terminal) -> None:
    path = write_special(tmp_path / "a.tar", ".link", tarfile.SYMTYPE, "/etc/passwd")
    assert list(list_archive(path, tmp_path / "cache", silent).paths) == ["red/00.jpg"]


def central(content: bytearray) -> int:
    """Where the first entry of a zip file's directory begins."""
    return content.index(b"PK\1\2")


def test_encrypted_members(tmp_path: Path, refused: Refused) -> None:
    def edit(content: bytearray) -> None:
        content[6] |= 1
        content[central(content) + 8] |= 1

    path = edited(write_zip(tmp_path / "a.zip", {"red/0.jpg": b"1"}), edit)
    assert "'red/0.jpg' is encrypted; pack it again without a password." in refused(path)


@pytest.mark.parametrize(
    ("method", "name"),
    [(zipfile.ZIP_BZIP2, "bzip2"), (zipfile.ZIP_LZMA, "lzma"), (93, "zstd"), (99, "method 99")],
)
def test_other_compressions(tmp_path: Path, refused: Refused, method: int, name: str) -> None:
    def edit(content: bytearray) -> None:
        content[central(content) + 10] = method

    path = edited(write_zip(tmp_path / "a.zip", {"red/0.jpg": b"1"}), edit)
    assert re.search(rf"'red/0\.jpg' is compressed by ({name}|method {method}); pack it again", refused(path))


# Bombs


def test_a_member_that_expands_too_much(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.data.archives.zip_members, "BOMB_BYTES", 1 << 20)
    path = write_zip(tmp_path / "a.zip", {"red/0.jpg": b"1", "red/bomb.jpg": bytes(2 << 20)})
    assert "'red/bomb.jpg' expands to more than 100 times its size" in refused(path)


def test_an_archive_that_expands_too_much(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.data.archives.plain_tar, "BOMB_BYTES", 1 << 20)
    path = write_tar(tmp_path / "a.tar.gz", {"red/bomb.jpg": bytes(4 << 20)}, "w:gz")
    assert "expands to more than 100 times its size" in refused(path)


def test_members_that_share_their_content(tmp_path: Path, refused: Refused) -> None:
    write_zip(tmp_path / "a.zip", {"red/0.jpg": b"1" * 50, "red/1.jpg": b"2" * 50}, zipfile.ZIP_STORED)

    def edit(content: bytearray) -> None:
        second = content.index(b"PK\1\2", central(content) + 4)
        content[second + 42 : second + 46] = bytes(4)

    assert "overlaps other content" in refused(edited(tmp_path / "a.zip", edit))


@pytest.mark.parametrize("size", [1, 99, 101, 5000])
def test_a_member_of_another_size_than_it_says(tmp_path: Path, silent: Terminal, size: int) -> None:
    def edit(content: bytearray) -> None:
        for place in (22, central(content) + 24):
            content[place : place + 4] = struct.pack("<I", size)

    path = edited(write_zip(tmp_path / "a.zip", {"red/0.jpg": b"1" * 100}), edit)
    files = list_archive(path, tmp_path / "cache", silent).files
    with pytest.raises(OSError, match="damaged in the archive"):
        files.read("red/0.jpg")
