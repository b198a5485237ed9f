"""Archives as datasets: what is listed and read, from which threads and processes, and what the cache folder keeps."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from archive_makers import class_members, jpeg, write_tar, write_zip
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import runner.data.archives.listing
import runner.data.archives.plain_tar
from runner.data.archives import files as archive_files
from runner.data.archives.index import open_index
from runner.data.archives.listing import is_archive, list_archive
from runner.data.listing import FileList, list_folder
from runner.utils.console import Terminal
from runner.utils.errors import UserError

MAKERS: dict[str, Callable[[Path, dict[str, bytes]], Path]] = {
    "a.tar": write_tar,
    "a.tar.gz": lambda path, members: write_tar(path, members, "w:gz"),
    "a.tgz": lambda path, members: write_tar(path, members, "w:gz"),
    "a.tar.bz2": lambda path, members: write_tar(path, members, "w:bz2"),
    "a.tar.xz": lambda path, members: write_tar(path, members, "w:xz"),
    "a.zip": write_zip,
    "stored.ZIP": lambda path, members: write_zip(path, members, zipfile.ZIP_STORED),
}

ListFiles = Callable[[Path], FileList]


@pytest.fixture
def listed(tmp_path: Path, silent: Terminal) -> ListFiles:
    return lambda path: list_archive(path, tmp_path / "cache", silent)


def write_folder(root: Path, members: dict[str, bytes]) -> Path:
    for name, content in members.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_is_listed_and_read_as_the_folder_that_it_was_made_of(
    tmp_path: Path, listed: ListFiles, name: str
) -> None:
    members = class_members() | {
        "notes/a b.txt": b"x" * 5000,
        "top.jpg": jpeg("red", 9),
        "red-2/0.jpg": b"",
        "a.b": b"1",
    }
    archive = MAKERS[name](tmp_path / name, members)
    folder = list_folder(write_folder(tmp_path / "folder", members), follow_links=False)
    for _ in range(2):  # the second time from the cache
        found = listed(archive)
        assert list(found.paths) == list(folder.paths)
        assert found.folders == folder.folders
        assert np.array_equal(found.folder_of, folder.folder_of)
        assert np.array_equal(found.stamps[:, 0], folder.stamps[:, 0])
        assert {path: found.files.read(path) for path in found.paths} == members
    assert found.files.root == archive
    assert found.files.shown("red/00.jpg") == f"{archive}/red/00.jpg"


def test_zstandard_is_read(tmp_path: Path, listed: ListFiles) -> None:
    import pyarrow as pa

    plain = write_tar(tmp_path / "a.tar", members := class_members())
    with pa.output_stream(str(tmp_path / "a.tar.zst"), "zstd") as stream:
        stream.write(plain.read_bytes())
    found = listed(tmp_path / "a.tar.zst")
    assert {path: found.files.read(path) for path in found.paths} == members


def test_nothing_is_written_beside_the_archive(tmp_path: Path, silent: Terminal) -> None:
    (tmp_path / "user").mkdir()
    for name, make in MAKERS.items():
        found = list_archive(make(tmp_path / "user" / name, class_members(1)), tmp_path / "cache", silent)
        found.files.read("red/00.jpg")
    assert sorted(path.name for path in (tmp_path / "user").iterdir()) == sorted(MAKERS)


def test_system_files_and_dots_are_left_out(tmp_path: Path, listed: ListFiles) -> None:
    members = {
        "./red/0.jpg": b"1",
        "blue//./1.jpg": b"2",
        "__MACOSX/red/._0.jpg": b"",
        "red/.DS_Store": b"",
        "Thumbs.db": b"",
        ".git/config": b"",
    }
    for found in (
        listed(write_tar(tmp_path / "a.tar", members)),
        listed(write_zip(tmp_path / "a.zip", members)),
    ):
        assert list(found.paths) == ["blue/1.jpg", "red/0.jpg"]
        assert found.folders == ("", "blue", "red")
        assert found.files.read("blue/1.jpg") == b"2"


def test_empty_folders_are_known(tmp_path: Path, listed: ListFiles) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("./", "./red/", "./red/deep/"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("red/deep/", "")
    for name in ("a.tar", "a.zip"):
        found = listed(tmp_path / name)
        assert found.folders == ("", "red", "red/deep")
        assert not len(found.paths)


def test_names_that_are_not_utf8_stay_as_on_disk_in_tar_files(tmp_path: Path, listed: ListFiles) -> None:
    name = os.fsdecode(b"caf\xe9/\xff.jpg")
    found = listed(write_tar(tmp_path / "a.tar", {name: b"1", "猫/ö.jpg": b"2"}))
    assert list(found.paths) == sorted([name, "猫/ö.jpg"])
    assert found.files.read(name) == b"1"
    assert found.folders == ("", os.fsdecode(b"caf\xe9"), "猫")


@pytest.mark.parametrize(("raw", "name"), [(b"caf\x82.jpg", "café.jpg"), ("猫.jpg".encode(), "猫.jpg")])
def test_zip_names_without_the_mark_of_utf8(tmp_path: Path, listed: ListFiles, raw: bytes, name: str) -> None:
    write_zip(tmp_path / "a.zip", {"x" * len(raw): b"1"})
    content = (tmp_path / "a.zip").read_bytes().replace(b"x" * len(raw), raw)
    (tmp_path / "a.zip").write_bytes(content)
    found = listed(tmp_path / "a.zip")
    assert list(found.paths) == [name]
    assert found.files.read(name) == b"1"


def test_hard_links_are_the_files_that_they_name(tmp_path: Path, listed: ListFiles) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "0.jpg").write_bytes(content := jpeg("red", 0))
    os.link(tmp_path / "red" / "0.jpg", tmp_path / "red" / "1.jpg")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "red", "red")
    found = listed(tmp_path / "a.tar")
    assert [found.files.read(path) for path in found.paths] == [content, content]


def test_long_names_and_large_headers(tmp_path: Path, listed: ListFiles) -> None:
    name = "/".join(["folder" * 20] * 5) + "/1.jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "a.tar", "w", format=form) as tar:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
        found = listed(tmp_path / "a.tar")
        assert found.files.read(name) == b"abc"


def test_members_that_look_like_other_archives(tmp_path: Path, listed: ListFiles) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"blue/0.jpg": b"1"}).read_bytes()
    for first in ("BZh9/0.jpg", "PK/0.jpg"):
        found = listed(write_tar(tmp_path / "a.tar", {first: b"1", "z/inner.zip": inner}))
        assert list(found.paths) == [first, "z/inner.zip"]


def test_a_tar_file_whose_name_hides_its_compression(tmp_path: Path, listed: ListFiles) -> None:
    for mode in ("w:gz", "w:bz2", "w:xz"):
        assert len(listed(write_tar(tmp_path / "a.tar", class_members(1), mode)).paths) == 3


# Threads and processes


def _digest_all(files: archive_files.ArchiveFiles, paths: list[str]) -> list[bytes]:
    return [files.read(path) for path in paths]


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_members_are_read_in_threads_and_processes(
    tmp_path: Path, listed: ListFiles, name: str, method: str
) -> None:
    members = class_members(20)
    files = listed(MAKERS[name](tmp_path / name, members)).files
    paths = sorted(members)
    expected = [members[path] for path in paths]
    assert _digest_all(files, paths) == expected  # the archive is open before the fork
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(files.read, paths * 20)) == expected * 20
    assert len(pickle.dumps(files)) < 1000
    with multiprocessing.get_context(method).Pool(2) as processes:
        parts = processes.starmap(_digest_all, [(files, paths)] * 4)
    assert parts == [expected] * 4


def test_many_archives_are_not_all_held_open(
    tmp_path: Path, listed: ListFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive_files._opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    for number in range(archive_files.OPEN_ARCHIVES + 20):
        listed(write_tar(tmp_path / f"{number}.tar", {"red/0.jpg": b"1"})).files.read("red/0.jpg")
    assert len(os.listdir("/proc/self/fd")) <= before + archive_files.OPEN_ARCHIVES + 5


# Changes and the cache


def test_the_index_is_read_once(tmp_path: Path, listed: ListFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_zip(tmp_path / "a.zip", class_members())
    first = listed(archive)
    monkeypatch.setattr(runner.data.archives.listing, "list_zip", None)
    second = listed(archive)
    assert list(second.paths) == list(first.paths)
    assert np.array_equal(second.stamps, first.stamps)


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.zip"])
def test_a_changed_archive_is_listed_again_and_the_old_cache_removed(
    tmp_path: Path, listed: ListFiles, name: str
) -> None:
    old = listed(MAKERS[name](tmp_path / name, {"red/0.jpg": b"1"}))
    kept = len(list((tmp_path / "cache" / "archives").glob("[!.]*")))
    (tmp_path / name).unlink()
    new = listed(MAKERS[name](tmp_path / name, {"red/0.jpg": b"2", "red/1.jpg": b"3"}))
    assert [new.files.read(path) for path in new.paths] == [b"2", b"3"]
    assert not (new.stamps[0] == old.stamps[0]).all()
    assert len(list((tmp_path / "cache" / "archives").glob("[!.]*"))) == kept


def test_stamps_of_zip_members_survive_a_copy_and_more_members(tmp_path: Path, listed: ListFiles) -> None:
    first = listed(write_zip(tmp_path / "a.zip", {"red/1.jpg": b"1"}))
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("red/0.jpg", b"0")
    second = listed(tmp_path / "a.zip")
    assert np.array_equal(second.stamps[1], first.stamps[0])


@pytest.mark.parametrize(
    "damage", [lambda c: c[:-1], lambda c: b"", lambda c: c[:50] + b"\xff" + c[51:], lambda c: b"x" * 99]
)
def test_a_damaged_index_is_made_again(
    tmp_path: Path, listed: ListFiles, damage: Callable[[bytes], bytes]
) -> None:
    archive = write_tar(tmp_path / "a.tar", members := class_members())
    listed(archive)
    (index,) = (tmp_path / "cache" / "archives").glob("*.index")
    index.write_bytes(damage(index.read_bytes()))
    open_index.cache_clear()
    found = listed(archive)
    assert {path: found.files.read(path) for path in found.paths} == members


def test_an_archive_that_is_replaced_later_is_not_misread(tmp_path: Path, listed: ListFiles) -> None:
    files = listed(write_tar(tmp_path / "a.tar", class_members())).files
    write_tar(tmp_path / "b.tar", {"red/9.jpg": b"1"})
    os.replace(tmp_path / "b.tar", tmp_path / "a.tar")
    archive_files._opened.cache_clear()
    with pytest.raises(OSError, match="the archive has changed since it was listed"):
        files.read("red/00.jpg")


def test_the_copy_of_a_compressed_tar_is_made_again_if_it_is_gone(tmp_path: Path, listed: ListFiles) -> None:
    archive = write_tar(tmp_path / "a.tgz", members := class_members(), "w:gz")
    old = listed(archive)
    (copy,) = (tmp_path / "cache" / "archives").glob("*.tar")
    copy.unlink()
    new = listed(archive)
    assert {path: new.files.read(path) for path in new.paths} == members
    assert np.array_equal(old.stamps, new.stamps)  # the images need not be verified again


def test_what_a_killed_copy_left_is_removed(tmp_path: Path, listed: ListFiles) -> None:
    archive = write_tar(tmp_path / "a.tgz", class_members(1), "w:gz")
    listed(archive)
    (copy,) = (tmp_path / "cache" / "archives").glob("*.tar")
    partial = copy.rename(copy.with_name(f".{copy.name}.0a1b2c3d.partial"))
    assert len(listed(archive).paths) == 3
    assert not partial.exists()


def test_a_copy_that_does_not_fit_is_refused(
    tmp_path: Path, listed: ListFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_tar(tmp_path / "a.tgz", class_members(), "w:gz")
    monkeypatch.setattr(runner.data.archives.plain_tar, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(UserError, match=r"not enough space in .* \(1\.0 MiB free\); pack it as \.tar"):
        listed(archive)
    assert not list((tmp_path / "cache" / "archives").glob("*.tar"))
    assert not list((tmp_path / "cache" / "archives").glob(".*.partial"))


def test_a_large_member_is_not_read(
    tmp_path: Path, listed: ListFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = listed(write_tar(tmp_path / "a.tar", {"red/0.jpg": b"x" * 1000})).files
    monkeypatch.setattr(archive_files, "MAX_MEMBER", 999)
    with pytest.raises(OSError, match="larger than 1 GiB"):
        files.read("red/0.jpg")


def test_a_member_that_is_not_there(tmp_path: Path, listed: ListFiles) -> None:
    with pytest.raises(FileNotFoundError, match="not in the archive"):
        listed(write_tar(tmp_path / "a.tar", {"red/0.jpg": b"1"})).files.read("red/1.jpg")


@settings(max_examples=30, deadline=None)
@given(
    st.dictionaries(
        st.lists(
            st.text("abé猫 .-\udcff", min_size=1, max_size=4).filter(lambda text: text.strip(".")),
            min_size=1,
            max_size=3,
        ).map("/".join),
        st.binary(max_size=3000),
        max_size=12,
    )
)
def test_any_names_and_contents(tmp_path_factory: pytest.TempPathFactory, members: dict[str, bytes]) -> None:
    folder = tmp_path_factory.mktemp("any")
    parents = {name.rsplit("/", depth)[0] for name in members for depth in (1, 2) if "/" in name}
    assume(parents.isdisjoint(members))
    usable = {
        name: content
        for name, content in members.items()
        if not any(part.startswith(".") for part in name.split("/"))
    }
    found = list_archive(write_tar(folder / "a.tar", members), folder / "cache", Terminal(enabled=False))
    assert list(found.paths) == sorted(usable)
    assert {path: found.files.read(path) for path in found.paths} == usable


def test_what_is_an_archive() -> None:
    named = ["a.zip", "A.TAR", "a.tar.gz", "a.b.tgz", "a.7z", "a.rar"]
    assert all(is_archive(Path(name)) for name in named)
    assert not any(is_archive(Path(name)) for name in ("tar", "a.jpg", "a.zip.csv"))
