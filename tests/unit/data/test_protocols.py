"""Splits by protocol: who is in which, and data that cannot fill one."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_images import images_of, names_of, split_input

from runner.config.data_schema import SplitConfig
from runner.config.schema import Experiment
from runner.config.tree import from_tree
from runner.data.images import SPLITS
from runner.data.splitting.checks import split_remarks
from runner.data.splitting.splits import assign_splits
from runner.utils.errors import UserError


def split_of(protocol: str) -> SplitConfig:
    experiment: Experiment = from_tree({"data": {"kind": "digits"}, "split": {"protocol": protocol}})
    return experiment.split


THIRTY = split_of("caltech101-30")
SIZES = {"a": 31, "b": 80, "c": 81, "d": 200}


def assign(sizes: dict[str, int], split: SplitConfig, seed: int) -> dict[str, str | None]:
    paths = images_of(sizes)
    return dict(zip(paths, names_of(assign_splits(split_input(paths), split, seed)), strict=True))


def sizes_of(assigned: dict[str, str | None], label: str) -> list[int]:
    counts = Counter(name for path, name in assigned.items() if path.startswith(f"{label}/"))
    return [counts[name] for name in SPLITS]


def test_thirty_a_class_train_at_most_fifty_test_and_the_rest_validates() -> None:
    assigned = assign(SIZES, THIRTY, 0)
    assert [sizes_of(assigned, label) for label in SIZES] == [
        [30, 0, 1],
        [30, 0, 50],
        [30, 1, 50],
        [30, 120, 50],
    ]


@given(st.dictionaries(st.sampled_from("abcdef"), st.integers(31, 200), min_size=2), st.integers(0, 2**32))
def test_every_image_is_in_one_split(sizes: dict[str, int], seed: int) -> None:
    sizes = {**sizes, "large": 90}
    assigned = assign(sizes, THIRTY, seed)
    for label, total in sizes.items():
        train, val, test = sizes_of(assigned, label)
        assert (train, test, train + val + test) == (30, min(50, total - 30), total)


def test_other_seeds_give_other_splits() -> None:
    assert len({frozenset(assign(SIZES, THIRTY, seed).items()) for seed in range(5)}) == 5


def test_the_test_images_are_those_of_25_and_5_images_for_training_and_validation() -> None:
    by_hand = assign(SIZES, SplitConfig("count", 25, 5, 50), 3)
    assigned = assign(SIZES, THIRTY, 3)
    known = {"train": {"train"}, "val": {"train"}, "test": {"test"}, None: {"val"}}
    assert all(assigned[path] in known[name] for path, name in by_hand.items())


def test_50_25_25_is_the_default_split() -> None:
    assert assign(SIZES, split_of("50-25-25"), 1) == assign(SIZES, SplitConfig(), 1)


def test_identical_images_are_not_divided_and_thirty_stay_thirty() -> None:
    paths = images_of(SIZES)
    contents = [path[:-5] if path.startswith("d/") else path for path in paths]  # tens of identical ones
    splits = names_of(assign_splits(split_input(paths, contents), THIRTY, 0))
    assigned = dict(zip(paths, splits, strict=True))
    assert sizes_of(assigned, "d") == [30, 120, 50]
    for number in range(20):
        assert len({name for path, name in assigned.items() if path.startswith(f"d/{number:02}")}) == 1


def test_classes_without_validation_images_are_named() -> None:
    images = split_input(images_of(SIZES))
    remarks = [*split_remarks(images, THIRTY, assign_splits(images, THIRTY, 0))]
    assert remarks == [
        "no validation images for 2 of 4 classes (a, b): its scores do not tell about them",
    ]


def refusal(sizes: dict[str, int], split: SplitConfig = THIRTY, **columns: list[object]) -> str:
    images = split_input(images_of(sizes), **columns)  # type: ignore[arg-type]
    with pytest.raises(UserError) as refused:
        assign_splits(images, split, 0)
    sentence = str(refused.value)
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("size", [12, 30])
def test_a_class_that_is_too_small_is_named(size: int) -> None:
    sentence = refusal({**SIZES, "tiny": size})
    assert f"class 'tiny' has {size} and 0; add images, remove the class" in sentence
    assert (
        "protocol=caltech101-30 needs 30 training images of each class and at least one for the test"
        in sentence
    )
    assert "class 'e' has 3 and 0 (and 1 more classes)" in refusal({**SIZES, "tiny": size, "e": 3})


def test_groups_that_do_not_fit_are_refused() -> None:
    images = images_of(SIZES)
    groups = [number // 7 for number in range(len(images))]
    assert "leave out split.group" in refusal(SIZES, groups=groups)


def test_splits_that_the_data_give_are_not_ignored() -> None:
    given_splits = ["test", *[None] * (sum(SIZES.values()) - 1)]
    assert "but the data decide that too" in refusal(SIZES, given=given_splits)
    assert "but the data decide that too" in refusal(SIZES, split_of("50-25-25"), given=given_splits)


def test_data_that_leave_nothing_for_validation_are_refused() -> None:
    assert "no class has more than the 30 images for training and 50 for the test" in refusal(
        {"a": 80, "b": 40}
    )


def test_the_rest_may_validate_beside_splits_that_the_data_give() -> None:
    paths = images_of({"a": 40, "b": 20})
    split = SplitConfig("count", 10, "rest", 50)
    given_splits = [
        "test" if number % 4 == 0 else "train" if number % 2 else None for number in range(len(paths))
    ]
    assigned = dict(
        zip(paths, names_of(assign_splits(split_input(paths, given=given_splits), split, 0)), strict=True)
    )
    assert sizes_of(assigned, "a") == [10, 20, 10]
    assert sizes_of(assigned, "b") == [10, 5, 5]
