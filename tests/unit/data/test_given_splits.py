"""Splits that the data give stay; what they do not give is taken from the training images."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_images import images_of, names_of, split_input

from runner.config.data_schema import SplitConfig
from runner.data.images import SPLITS
from runner.data.splitting.checks import split_remarks
from runner.data.splitting.clusters import SplitInput
from runner.data.splitting.splits import assign_splits
from runner.utils.errors import UserError

COUNT = SplitConfig("count", 6, 3, 4)


def with_given(sizes: dict[str, int]) -> SplitInput:
    """Images `split/class/number`: `{split/class: count}`; "open" stands for no split."""
    paths = images_of(sizes)
    return split_input(
        paths, given=[None if (name := path.split("/")[0]) == "open" else name for path in paths]
    )


def assign(images: SplitInput, split: SplitConfig | None = None, seed: int = 0) -> dict[str, str | None]:
    return dict(zip(images.paths, names_of(assign_splits(images, split or SplitConfig(), seed)), strict=True))


def sizes_of(assigned: dict[str, str | None]) -> Counter[tuple[str, str | None]]:
    """Number of images by where the data have them and their split."""
    return Counter((path.split("/")[0], name) for path, name in assigned.items())


@pytest.mark.parametrize("split", [SplitConfig(), COUNT])
def test_images_whose_splits_are_given_are_not_split_again(split: SplitConfig) -> None:
    images = with_given({f"{name}/{label}": 5 for name in SPLITS for label in "ab"})
    assert sizes_of(assign(images, split)) == {(name, name): 10 for name in SPLITS}


@pytest.mark.parametrize(("given_split", "missing"), [("test", "val"), ("val", "test")])
def test_a_missing_split_is_taken_from_the_training_images(given_split: str, missing: str) -> None:
    sizes = {
        f"{name}/{label}": 30 if name == "train" else 7 for name in ("train", given_split) for label in "ab"
    }
    assert sizes_of(assign(with_given(sizes))) == {
        ("train", "train"): 40,
        ("train", missing): 20,  # a third: 0.25 / (0.5 + 0.25)
        (given_split, given_split): 14,
    }


def test_both_missing_splits_are_taken_from_the_training_images_as_usual() -> None:
    images = with_given({f"train/{label}": 31 for label in "ab"})
    assert assign(images) == assign(split_input(list(images.paths)))


def test_counts_per_class_hold_for_what_is_taken_from_the_training_images() -> None:
    sizes = {f"train/{label}": 20 for label in "ab"} | {f"test/{label}": 7 for label in "ab"}
    assert sizes_of(assign(with_given(sizes), COUNT)) == {
        ("train", "train"): 34,
        ("train", "val"): 6,
        ("test", "test"): 14,
    }


def test_beside_a_given_test_split_counts_limit_the_training_images_that_are_not_given() -> None:
    sizes = {f"open/{label}": 20 for label in "ab"} | {f"test/{label}": 7 for label in "ab"}
    assert sizes_of(assign(with_given(sizes), COUNT)) == {
        ("open", "train"): 12,
        ("open", "val"): 6,
        ("open", None): 22,
        ("test", "test"): 14,
    }


def test_images_without_a_split_beside_complete_splits_are_split_as_usual() -> None:
    sizes = {f"{name}/{label}": 5 for name in SPLITS for label in "ab"} | {"open/a": 8, "open/b": 4}
    found = sizes_of(assign(with_given(sizes)))
    assert [found["open", name] for name in SPLITS] == [6, 3, 3]
    assert all(found[name, name] == 10 for name in SPLITS)


def test_images_without_a_split_are_for_training_if_only_this_is_not_given() -> None:
    sizes = {f"{name}/{label}": 5 for name in ("open", "val", "test") for label in "ab"}
    assert sizes_of(assign(with_given(sizes)))["open", "train"] == 10


def test_without_given_splits_nothing_differs() -> None:
    images = with_given({f"open/{label}": 20 for label in "ab"})
    plain = split_input(list(images.paths))
    assert assign(images) == assign(plain)


def test_a_duplicate_of_a_test_image_is_a_test_image() -> None:
    paths = images_of({"open/a": 20, "open/b": 20, "test/a": 2, "test/b": 2})
    contents = ["test/a/000.png" if path == "open/a/003.png" else path for path in paths]
    given_splits = ["test" if path.startswith("test") else None for path in paths]
    assigned = assign(split_input(paths, contents, given=given_splits))
    assert assigned["open/a/003.png"] == "test"
    assert sizes_of(assigned)["open", "test"] == 1


def test_a_training_image_that_is_also_a_test_image_stays() -> None:
    paths = images_of({f"{name}/{label}": 20 for name in ("train", "test") for label in "ab"})
    contents = ["same" if path.endswith("a/003.png") else path for path in paths]
    for seed in range(5):
        assigned = assign(
            split_input(paths, contents, given=[path.split("/")[0] for path in paths]), seed=seed
        )
        assert (assigned["train/a/003.png"], assigned["test/a/003.png"]) == ("train", "test")


@given(
    st.dictionaries(
        st.tuples(st.sampled_from([*SPLITS, "open"]), st.sampled_from("abc")),
        st.integers(1, 12),
        min_size=4,
    ),
    st.sampled_from([SplitConfig(), COUNT, SplitConfig(folds=3, fold=1)]),
    st.integers(0, 9),
)
def test_no_image_leaves_its_given_split_for_another_but_training(
    sizes: dict[tuple[str, str], int], split: SplitConfig, seed: int
) -> None:
    images = with_given({"/".join(name): size for name, size in sizes.items()})
    try:
        assigned = assign(images, split, seed)
    except UserError:
        return
    moved = {(before, after) for before, after in sizes_of(assigned) if before not in ("open", after)}
    assert all(before == "train" or (split.folds and before == "val") for before, _ in moved)
    if any(before == "test" for before, _ in sizes):
        assert ("train", "test") not in moved
    labels = {path.split("/")[1] for path in assigned}
    assert {path.split("/")[1] for path, name in assigned.items() if name == "train"} == labels


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            {"train/a": 8, "train/b": 8, "test/a": 2, "test/b": 2, "test/c": 2},
            "The data have no training images for class 'c', only test images; add some, or remove the class.",
        ),
        (
            {"train/a": 8, "val/a": 8, "test/a": 2, "test/b": 2, "val/c": 2},
            "The data have no training images for classes 'b', 'c', only validation and test images; add some, or"
            " remove these classes.",
        ),
        (
            {"train/circle": 8, "train/b": 8, "test/Circle": 2, "test/b": 2},
            "The data have no training images for class 'Circle' (did you mean 'circle'?), only test images; write a"
            " class alike in all splits, add some, or remove the class.",
        ),
        (
            {"train/square": 8, "train/sqare": 8, "test/sqare": 2, "test/squares": 2, "test/x": 2},
            "The data have no training images for classes 'squares' (did you mean 'square'?), 'x', only test images;"
            " write a class alike in all splits, add some, or remove these classes.",
        ),
        (
            {"train/a": 8, "train/class1": 8, "test/class1": 2, "test/class2": 2},
            "The data have no training images for class 'class2', only test images; add some, or remove the class.",
        ),
        (
            {"train/a": 8, "train/b": 1, "test/a": 2, "test/b": 2},
            "Class 'b' has 1 image, too few for its splits (train gets none); add images, change split.*, or remove"
            " the class.",
        ),
        (
            {"train/a": 8, "test/a": 2},
            "There is only one class (a); at least two are needed.",
        ),
    ],
)
def test_classes_that_cannot_be_trained_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        assign(with_given(sizes))
    assert str(refusal.value) == message


def test_classes_missing_from_a_given_split_are_named() -> None:
    images = with_given({"train/a": 8, "train/b": 8, "train/c": 8, "test/a": 2})
    remarks = list(split_remarks(images, SplitConfig(), assign_splits(images, SplitConfig(), 0)))
    assert remarks == [
        "the data have no validation split: 9 images of the others are used for it",
        "no test images for 2 of 3 classes (b, c): its scores do not tell about them",
    ]
    images = with_given({f"{name}/{label}": 8 for name in SPLITS for label in "ab"})
    assert not list(split_remarks(images, SplitConfig(), assign_splits(images, SplitConfig(), 0)))
