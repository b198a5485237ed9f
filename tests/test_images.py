"""Image files by what a person names."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    def names(*given: str) -> list[str]:
        return [each.as_posix() for each in find_images(given)]

    monkeypatch.chdir(tree)
    assert names("*.png") == ["a.png"]
    assert names("**/*.png") == ["a.png", "deep/c.png"]
    assert names("**/*.webp", "a.png") == ["deep/er/d.webp", "a.png"]
    assert names("deep") == ["deep/c.png", "deep/er/d.webp"]
    assert names("[ab].*") == ["a.png", "b.JPG"]
    assert names("*.txt") == ["notes.txt"], "who names it wants it"
    assert set(names(".")) >= {"a.png", "b.JPG", "deep/c.png", "deep/er/d.webp"}
    assert "notes.txt" not in names(".")
    assert names("b.JPG", "a.png", "b.JPG", "*.png") == ["b.JPG", "a.png"], "each once, as it was asked"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("nothing.png", "There is no nothing.png;"),
        ("nothing/*.png", "The pattern 'nothing/*.png' matches no image."),
        ("**/*.gif", "The pattern '**/*.gif' matches no image."),
        ("empty", "The folder empty holds no images ("),
        ("a\0b", "There is no a"),
        ("a" * 300, "There is no aaa"),
        ("~nobody-at-all/x.png", "~nobody"),
        ("", "There is no"),
    ],
    ids=lambda text: text[:20].replace("\0", "0"),
)
def test_words_that_name_nothing(
    tree: Path, monkeypatch: pytest.MonkeyPatch, word: str, sentence: str
) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(UserError) as failure:
        find_images(["a.png", word])
    assert str(failure.value).startswith(sentence) or sentence in str(failure.value)


def test_a_pattern_may_name_folders(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell would have given their names, and each would have stood for its images."""
    monkeypatch.chdir(tree)
    assert [each.as_posix() for each in find_images(["dee*"])] == ["deep/c.png", "deep/er/d.webp"]
