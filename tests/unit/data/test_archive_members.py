"""Archives that cannot be used: each is refused with one sentence that names the archive, and the member."""

from __future__ import annotations

import io
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from archive_makers import class_members, jpeg, write_special, write_tar, write_zip

import runner.data.archives.plain_tar
import runner.data.archives.zip_members
from runner.data.archives.listing import list_archive
from runner.data.listing import FileList
from runner.utils.console import Terminal
from runner.utils.errors import UserError

ListFiles = Callable[[Path], FileList]


@pytest.fixture
def refused(tmp_path: Path, silent: Terminal) -> Callable[[Path], str]:
    """What the error for an archive says. Nothing may be written but in the cache folder."""

    def say(path: Path) -> str:
        cache = tmp_path / "cache"
        before = [one for one in sorted(tmp_path.rglob("*")) if not one.is_relative_to(cache)]
        with pytest.raises(UserError) as caught:
            list_archive(path, cache, silent)
        assert [one for one in sorted(tmp_path.rglob("*")) if not one.is_relative_to(cache)] == before
        assert not [one for one in cache.rglob("*") if one.is_file() and not one.name.endswith(".lock")]
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    return say


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


def edited(path: Path, edit: Callable[[bytearray], None]) -> Path:
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)
    return path


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


# Damage


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
