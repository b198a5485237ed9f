"""Files with the same content share their space, and are complete files of their own."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from runner.utils.hard_links import link_copies, write_once


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
    return tmp_path / "shared" / "digest"


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)


def test_the_content_is_written_once(tmp_path: Path, shared: Path) -> None:
    one, other = tmp_path / "a" / "x", tmp_path / "b" / "x"
    place(one, shared)
    shared.chmod(0o444)
    place(other, shared)
    place(other, shared)
    assert one.samefile(other)
    assert shared.stat().st_nlink == 3
    one.unlink()
    assert intact(other)
    assert list(other.parent.iterdir()) == [other], "nothing is left beside it"


def test_a_damaged_file_is_written_again(tmp_path: Path, shared: Path) -> None:
    place(tmp_path / "before", shared)
    shared.unlink()
    shared.write_text("damaged")
    place(tmp_path / "after", shared)
    assert shared.samefile(tmp_path / "after")


def test_content_that_nobody_has_any_more_is_removed(tmp_path: Path, shared: Path) -> None:
    place(tmp_path / "one", shared.with_name("first"))
    place(tmp_path / "two", shared.with_name("second"))
    (tmp_path / "one").unlink()
    place(tmp_path / "three", shared)
    assert sorted(path.name for path in shared.parent.iterdir()) == ["digest", "second"]


@pytest.mark.usefixtures("no_links")
def test_without_hard_links_each_file_is_its_own(tmp_path: Path, shared: Path) -> None:
    for name in ("one", "two"):
        place(tmp_path / name, shared)
    assert not (tmp_path / "one").samefile(tmp_path / "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "shared", "two"]


def test_copies_of_linked_files_become_links(tmp_path: Path, shared: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    place(source / "deep" / "linked", shared)
    write(source / "plain")
    shutil.copytree(source, copy)
    link_copies(source, copy)
    link_copies(source, copy)
    assert (copy / "deep" / "linked").samefile(shared)
    assert not (copy / "plain").samefile(source / "plain")
    (tmp_path / "single").write_text("content")
    link_copies(source / "deep" / "linked", tmp_path / "single")
    assert (tmp_path / "single").samefile(shared)


def test_files_of_another_size_and_missing_ones_stay(tmp_path: Path, shared: Path) -> None:
    place(tmp_path / "one", shared)
    (tmp_path / "two").write_text("a longer content")
    for name in ("two", "missing"):
        link_copies(tmp_path / "one", tmp_path / name)
    assert (tmp_path / "two").read_text() == "a longer content"
    assert not (tmp_path / "missing").exists()
