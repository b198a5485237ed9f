"""The image table: it holds what its rows say, and its digest is that of its rows."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runner.data.columns
import runner.data.images
from runner.data.columns import Paths
from runner.data.images import SPLITS, Entry, Images
from runner.utils import hashing

NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: _survives(name)
)
ENTRIES = st.lists(
    st.builds(
        Entry,
        path=NAMES,
        label=st.text('ab"\\é', min_size=1, max_size=2),
        split=st.sampled_from(SPLITS),
        size=st.integers(0, 2**40),
        digest=st.binary(min_size=20, max_size=20).map(bytes.hex),
    ),
    max_size=7,
)


def _survives(name: str) -> bool:
    """Whether a file can have the name."""
    try:
        return os.fsdecode(os.fsencode(name)) == name
    except UnicodeEncodeError:
        return False


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three rows, so that a few rows are several blocks."""
    monkeypatch.setattr(runner.data.columns, "BLOCK", 3)
    monkeypatch.setattr(runner.data.images, "BLOCK", 3)


@given(st.lists(NAMES | st.just(os.fsdecode(b"caf\xe9"))))
def test_a_column_holds_its_paths(names: list[str]) -> None:
    paths = Paths.of(names)
    assert list(paths) == paths.to_list() == names
    assert [paths[index] for index in range(len(paths))] == names
    assert list(paths.iter_bytes()) == [os.fsencode(name) for name in names]
    assert list(Paths.joined([paths[:2], paths[2:]])) == names
    assert list(paths.take(np.arange(len(names))[::-1])) == names[::-1]
    assert paths == Paths.of(names)
    assert (paths.positions(paths) >= 0).all()


def test_a_path_that_no_file_can_have_is_no_path() -> None:
    with pytest.raises(ValueError, match="null character"):
        Paths.of(["a", "b\0c"])


def test_an_unknown_path_has_no_position() -> None:
    assert Paths.of(["a", "b"]).positions(Paths.of(["b", "c"])).tolist() == [1, -1]


@given(ENTRIES)
def test_a_table_gives_back_its_rows(entries: list[Entry]) -> None:
    images = Images.of(entries)
    assert list(images) == [images[index] for index in range(len(images))] == entries
    assert list(images[1:]) == entries[1:]
    assert list(images.take(images.splits == 0)) == [each for each in entries if each.split == "train"]
    assert images == Images.of(entries)


@given(ENTRIES)
def test_the_digest_is_that_of_the_rows(entries: list[Entry]) -> None:
    images = Images.of(entries)
    rows = [(each.path, each.label, each.split, each.digest) for each in entries]
    assert images.digest() == hashing.digest(rows)
    without = [(path, label, content) for path, label, _, content in rows]
    assert images.digest(with_splits=False) == hashing.digest(without)
