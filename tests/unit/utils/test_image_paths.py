"""Image files given by file, folder or pattern."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import draw

from runner.data.files import FolderFiles
from runner.data.scan import verify_files
from runner.utils.errors import UserError
from runner.utils.image_paths import find_images


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """a.png, b.JPG, notes.txt, .hidden.png, deep/c.png, deep/er/d.webp, empty/"""
    for name in ("a.png", "b.JPG", "notes.txt", ".hidden.png", "deep/c.png", "deep/er/d.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    return tmp_path


def test_patterns_and_folders(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names(*arguments: str) -> list[str]:
        return [each.as_posix() for each in find_images(arguments)]

    monkeypatch.chdir(tree)
    assert names("*.png") == ["a.png"]
    assert names("**/*.png") == ["a.png", "deep/c.png"]
    assert names("**/*.webp", "a.png") == ["deep/er/d.webp", "a.png"]
    assert names("deep") == ["deep/c.png", "deep/er/d.webp"]
    assert names("[ab].*") == ["a.png", "b.JPG"]
    assert names("*.txt") == ["notes.txt"], "a file that is named itself may have any name"
    assert set(names(".")) >= {"a.png", "b.JPG", "deep/c.png", "deep/er/d.webp"}
    assert "notes.txt" not in names(".")
    assert names("b.JPG", "a.png", "b.JPG", "*.png") == ["b.JPG", "a.png"], (
        "in their order, without repetition"
    )


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("nothing.png", "There is no nothing.png;"),
        ("nothing/*.png", "The pattern 'nothing/*.png' matches no image."),
        ("**/*.gif", "The pattern '**/*.gif' matches no image."),
        ("empty", "The folder empty holds no images"),
        ("a\0b", "There is no a"),
        ("a" * 300, "There is no aaa"),
        ("~nobody-at-all/x.png", "~nobody"),
        ("", "There is no"),
    ],
    ids=lambda text: text[:20].replace("\0", "0"),
)
def test_an_argument_without_images_is_refused(
    tree: Path, monkeypatch: pytest.MonkeyPatch, word: str, sentence: str
) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(UserError) as refused:
        find_images(["a.png", word])
    assert str(refused.value).startswith(sentence) or sentence in str(refused.value)


def test_a_pattern_may_name_folders(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a shell had expanded it."""
    monkeypatch.chdir(tree)
    assert [each.as_posix() for each in find_images(["dee*"])] == ["deep/c.png", "deep/er/d.webp"]


# Images by any name


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("002.png?w=640", "PNG"), ("photo", "JPEG"), ("a.jp2", "JPEG2000"), ("b.tga", "TGA")),
        *(("c.mpo", "MPO"), ("d.ppm.bak", "PPM"), ("e.webp!large", "WEBP")),
    ],
)
def test_a_folder_holds_what_training_takes_by_any_name(tree: Path, name: str, kind: str) -> None:
    draw("red", 1).save(tree / "empty" / name, kind)
    assert find_images([str(tree / "empty")]) == [tree / "empty" / name]
    assert verify_files(FolderFiles(tree / "empty"), [name]).errors == {}


def test_what_is_passed_over_is_said(tree: Path) -> None:
    (tree / "table.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    (tree / "more").symlink_to(tree / "deep")
    said: list[str] = []
    assert len(find_images([str(tree)], said.append)) == 4
    others, links = said
    assert others.startswith("passed over: 2 files that Pillow cannot read (")
    assert "table.h5" in others
    assert "notes.txt" in others
    assert links == f"not followed: 1 linked folder ({tree}/more); name them to include them"


def test_a_damaged_file_with_the_name_of_an_image_is_reported_later(tree: Path) -> None:
    (tree / "empty" / "torn").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (tree / "empty" / "torn.jp2").write_bytes(b"torn")
    assert len(find_images([str(tree / "empty")])) == 2


# Links


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with an image, a link to one outside, and linked folders that lead outside and in cycles."""
    outside, folder = tmp_path / "outside", tmp_path / "folder"
    (outside / "deep").mkdir(parents=True)
    (folder / "inner").mkdir(parents=True)
    for path in (outside / "private.png", outside / "deep" / "private.png", folder / "inner" / "own.png"):
        path.write_bytes(b"x")
    (folder / "chosen.png").symlink_to(outside / "private.png")
    (folder / "out").symlink_to(outside)
    (folder / "inner" / "top").symlink_to(folder)
    (folder / "inner" / "self").symlink_to(".")
    (folder / "broken.png").symlink_to(outside / "nothing.png")
    (folder / "round.png").symlink_to("round.png")
    return folder


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", ["", "/**/*.png", "/**", "/**/*", "/[ic]*"])
def test_linked_folders_below_a_folder_are_not_followed(linked: Path, pattern: str) -> None:
    """Two links that form cycles would make 2^40 paths."""
    found = [path.relative_to(linked).as_posix() for path in find_images([f"{linked}{pattern}"])]
    assert sorted(set(found) - {"broken.png", "round.png"}) == ["chosen.png", "inner/own.png"]
    assert len(found) == len(set(found))


def test_a_link_that_is_named_is_followed(linked: Path) -> None:
    assert find_images([str(linked / "chosen.png")]) == [linked / "chosen.png"]
    assert find_images([str(linked / "out")]) == [linked / "out/deep/private.png", linked / "out/private.png"]
    assert find_images([str(linked / "o*" / "*.png")]) == [linked / "out/private.png"]
