"""What is said about images: contradicting labels, small classes, leaks between given splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_images import images_of, split_input

from runner.data.remarks import groups_with_several, image_remarks
from runner.data.splitting.leaks import find_leaks, leak_remarks
from runner.utils.errors import UserError


def test_images_in_several_classes_are_named() -> None:
    paths = images_of({"a": 12, "b": 12, "c": 12})
    contents = ["same" if path in ("a/003.png", "c/001.png", "c/002.png") else path for path in paths]
    (remark,) = image_remarks(split_input(paths, contents))
    assert remark == (
        "contradicting labels: 1 image in more than one class (a/003.png = c/001.png); leave each in one class"
    )


def test_of_many_identical_images_a_few_are_named() -> None:
    paths = images_of(dict.fromkeys("abcdef", 1000))
    (remark,) = image_remarks(split_input(paths, ["same"] * len(paths)))
    assert "(a/000.png = b/000.png = c/000.png = 3 more)" in remark
    pairs = [path.partition("/")[2] for path in paths]
    (remark,) = image_remarks(split_input(paths, pairs))
    assert "1,000 images in more than one class" in remark
    assert "and 995 more" in remark
    assert len(remark) < 500


def test_small_classes_are_named_the_smallest_first() -> None:
    (remark,) = image_remarks(split_input(images_of({"a": 12, "b": 9, "c": 4})))
    assert remark == (
        "fewer than 10 images in 2 of 3 classes (c: 4, b: 9): their scores depend on single images"
    )
    assert not list(image_remarks(split_input(images_of({"a": 10, "b": 10}))))
    assert not list(image_remarks(split_input([])))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=40))
def test_groups_with_several_values_are_found(members: list[tuple[int, int]]) -> None:
    expected = {
        tuple(index for index, (other, _) in enumerate(members) if other == group)
        for group, _ in members
        if len({value for other, value in members if other == group}) > 1
    }
    groups = np.array([group for group, _ in members], np.int32)
    found = groups_with_several(groups, np.array([value for _, value in members], np.int32))
    assert [tuple(indices.tolist()) for indices in found] == sorted(expected)


def leaking(copies: int) -> tuple[list[str], list[str], list[str]]:
    """Paths, contents and given splits of images of which the first ones are in training and test."""
    paths = images_of({f"{name}/{label}": 9 for name in ("train", "test") for label in "ab"})
    contents = [
        path.partition("/")[2] if int(path[-7:-4]) < copies and "/a/" in path else path for path in paths
    ]
    return paths, contents, [path.split("/")[0] for path in paths]


def test_the_same_image_in_two_given_splits_stops_the_run() -> None:
    paths, contents, splits = leaking(1)
    with pytest.raises(UserError) as refusal:
        list(leak_remarks(split_input(paths, contents, given=splits), "stop"))
    assert str(refusal.value) == (
        "1 image is in more than one given split (train/a/000.png = test/a/000.png in train/test); leave each in one"
        " split, or set data.leaks=report to go on: scores will be too good."
    )


def test_leaks_are_counted_and_the_first_named() -> None:
    paths, contents, splits = leaking(5)
    (remark,) = leak_remarks(split_input(paths, contents, given=splits), "report")
    assert remark == (
        "leaks: 5 images are in more than one given split (train/a/000.png = test/a/000.png in train/test,"
        " train/a/001.png = test/a/001.png in train/test, train/a/002.png = test/a/002.png in train/test and 2 more);"
        " scores on them are too good"
    )


def test_duplicates_in_one_split_or_without_a_split_are_no_leaks() -> None:
    paths = images_of({"test/a": 2, "train/a": 2})
    contents = ["test", "same", "same", "same"]
    assert not find_leaks(split_input(paths, contents, given=["test", None, "train", "train"]))
    assert not find_leaks(split_input(paths, contents))
    assert len(find_leaks(split_input(paths, contents, given=["test", "test", "train", None]))) == 1
