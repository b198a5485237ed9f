"""Files with the same content share their space, and are complete files of their own."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runner.utils.hard_links import copy_folder, link_instead_of_copy, write_once


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("content")


def intact(path: Path) -> bool:
    return path.read_text() == "content"


def place(path: Path, shared: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_once(path, shared, write, intact)
    assert intact(path)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "digest.safetensors"


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)


def test_the_content_is_written_once(tmp_path: Path, shared: Path) -> None:
    one, other = tmp_path / "a" / "x", tmp_path / "b" / "x"
    place(one, shared)
    assert not shared.stat().st_mode & 0o222, "who writes to one name in place would change all"
    place(other, shared)
    place(other, shared)
    assert one.samefile(other)
    assert shared.stat().st_nlink == 3
    one.unlink()
    assert intact(other)
    assert list(other.parent.iterdir()) == [other], "nothing is left beside it"


def test_what_a_killed_process_left_beside_the_file_goes(tmp_path: Path, shared: Path) -> None:
    path = tmp_path / "a" / "x"
    if (process := os.fork()) == 0:
        Path.replace = lambda *_: os._exit(9)  # type: ignore[assignment, method-assign, misc]
        try:
            place(path, shared)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9
    assert list(path.parent.iterdir()) not in ([], [path]), "it was killed in between"
    place(path, shared)
    assert list(path.parent.iterdir()) == [path]


def test_a_damaged_file_is_written_again(tmp_path: Path, shared: Path) -> None:
    place(tmp_path / "before", shared)
    shared.unlink()
    shared.write_text("damaged")
    place(tmp_path / "after", shared)
    assert shared.samefile(tmp_path / "after")


def test_content_that_nobody_has_any_more_is_removed(tmp_path: Path, shared: Path) -> None:
    place(tmp_path / "one", shared.with_name("first.safetensors"))
    place(tmp_path / "two", shared.with_name("second.safetensors"))
    (tmp_path / "one").unlink()
    place(tmp_path / "three", shared)
    assert sorted(path.name for path in shared.parent.iterdir()) == [
        "digest.safetensors",
        "second.safetensors",
    ]


def test_what_others_keep_beside_the_shared_files_stays(tmp_path: Path, shared: Path) -> None:
    (shared.parent / "folder.safetensors").mkdir(parents=True)
    (shared.parent / "notes.txt").write_text("mine")
    (shared.parent / "link.safetensors").symlink_to("notes.txt")
    place(tmp_path / "one", shared)
    assert shared.samefile(tmp_path / "one")
    names = ["digest.safetensors", "folder.safetensors", "link.safetensors", "notes.txt"]
    assert sorted(path.name for path in shared.parent.iterdir()) == names


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_each_file_is_its_own(tmp_path: Path, shared: Path) -> None:
    for name in ("one", "two"):
        place(tmp_path / name, shared)
    assert not (tmp_path / "one").samefile(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "shared", "two"]


def test_copies_of_linked_files_are_links(tmp_path: Path, shared: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    place(source / "deep" / "linked", shared)
    write(source / "plain")
    for _ in range(2):
        copy_folder(source, copy)
        assert (copy / "deep" / "linked").samefile(shared)
        assert (copy / "plain").read_text() == "content"
        assert not (copy / "plain").samefile(source / "plain")
        assert sorted(path.name for path in copy.rglob("*")) == ["deep", "linked", "plain"]


def test_a_file_with_one_name_is_not_linked(tmp_path: Path) -> None:
    write(tmp_path / "one")
    assert not link_instead_of_copy(tmp_path / "one", tmp_path / "two")
    assert not (tmp_path / "two").exists()


def test_a_copy_does_not_change_the_other_names_of_what_it_replaces(tmp_path: Path, shared: Path) -> None:
    place(tmp_path / "copy" / "x", shared)
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "x").write_text("new")
    copy_folder(tmp_path / "source", tmp_path / "copy")
    assert (tmp_path / "copy" / "x").read_text() == "new"
    assert intact(shared)


@pytest.mark.usefixtures("no_links")
def test_a_folder_is_copied_where_there_are_no_links(tmp_path: Path) -> None:
    write(tmp_path / "source" / "x")
    copy_folder(tmp_path / "source", tmp_path / "copy")
    assert intact(tmp_path / "copy" / "x")
