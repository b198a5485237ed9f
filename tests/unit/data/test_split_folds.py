"""Folds: every image in exactly one, classes in proportion, what belongs together undivided."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from split_images import images_of, names_of, split_input

from runner.config.data_schema import SplitConfig
from runner.data.images import SPLITS
from runner.data.splitting.checks import split_remarks
from runner.data.splitting.clusters import SplitInput
from runner.data.splitting.splits import assign_splits
from runner.data.splitting.stratify import _level
from runner.utils.errors import UserError


def of_folds(images: SplitInput, folds: int, fold_as: str = "test", seed: int = 0) -> list[list[str | None]]:
    """The splits for each fold."""
    settings = (SplitConfig(folds=folds, fold=fold, fold_as=fold_as) for fold in range(folds))
    return [names_of(assign_splits(images, split, seed)) for split in settings]


@given(
    st.dictionaries(st.sampled_from("abcde"), st.integers(9, 30), min_size=2),
    st.integers(2, 6),
    st.integers(0, 99),
)
def test_each_image_is_tested_once_and_folds_are_equal(sizes: dict[str, int], folds: int, seed: int) -> None:
    paths = images_of(sizes)
    splits = of_folds(split_input(paths), folds, seed=seed)
    assert all(Counter(names)["test"] == 1 for names in zip(*splits, strict=True))
    in_all = [Counter(names)["test"] for names in splits]
    assert max(in_all) - min(in_all) <= 1
    for label, size in sizes.items():
        found = [
            Counter(name for path, name in zip(paths, names, strict=True) if path[0] == label)
            for names in splits
        ]
        tested = [count["test"] for count in found]
        assert max(tested) - min(tested) <= 1
        for count in found:
            assert 0 <= count["val"] - (size - count["test"]) / 3 < 1


def test_folds_differ_in_their_validation_images() -> None:
    splits = of_folds(split_input(images_of({"a": 60, "b": 60})), 4)
    validated = [Counter(names)["val"] for names in zip(*splits, strict=True)]
    assert np.mean(validated) == 1
    assert validated.count(0) < 30


@pytest.mark.parametrize("has_test", [False, True])
def test_as_validation_split_a_fold_is_beside_one_test_split(has_test: bool) -> None:
    paths = images_of({"a": 40, "b": 20})
    given_splits = ["test" if has_test and path.endswith("0.png") else None for path in paths]
    splits = of_folds(split_input(paths, given=given_splits), 3, "test" if has_test else "val")
    together = list(zip(*splits, strict=True))
    tested = [names for names in together if "test" in names]
    assert len(tested) == (6 if has_test else 15)
    assert set(tested) == {("test",) * 3}
    assert all(Counter(names) == {"val": 1, "train": 2} for names in together if "test" not in names)


def test_the_test_split_beside_folds_is_that_without_folds() -> None:
    images = split_input(images_of({"a": 40, "b": 20}))
    usual = names_of(assign_splits(images, SplitConfig(), 0))
    for names in of_folds(images, 3, "val"):
        assert [name == "test" for name in names] == [name == "test" for name in usual]


def test_folds_take_the_place_of_given_validation_images() -> None:
    paths = images_of({f"{name}/{label}": 8 for name in SPLITS for label in "ab"})
    images = split_input(paths, given=[path.split("/")[0] for path in paths])
    for names in zip(paths, *of_folds(images, 4), strict=True):
        path, *splits = names
        expected = {"test": 4} if path.startswith("test") else {"val": 1, "train": 3}
        assert Counter(splits) == expected
    split = SplitConfig(folds=4)
    _, remark = split_remarks(images, split, assign_splits(images, split, 0))
    assert remark.startswith("the folds divide the training and validation images together")


def test_folds_that_cannot_be_test_splits_are_a_remark() -> None:
    paths = images_of({f"{name}/{label}": 8 for name in ("train", "test") for label in "ab"})
    images = split_input(paths, given=[path.split("/")[0] for path in paths])

    def remarks(fold_as: str) -> list[str]:
        split = SplitConfig(folds=4, fold=0, fold_as=fold_as)  # type: ignore[arg-type]
        return list(split_remarks(images, split, assign_splits(images, split, 0)))

    (remark,) = remarks("test")
    assert remark.startswith(
        "the folds are validation splits (as with split.fold_as=val), not test splits: the data"
    )
    assert not remarks("val")


def test_given_validation_images_stay_beside_folds_for_testing() -> None:
    paths = images_of({f"{name}/{label}": 8 for name in ("train", "val") for label in "ab"})
    images = split_input(paths, given=[path.split("/")[0] for path in paths])
    for path, *splits in zip(paths, *of_folds(images, 4), strict=True):
        assert Counter(splits) == ({"val": 4} if path.startswith("val") else {"test": 1, "train": 3})


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 25)), max_size=60),
    st.booleans(),
    st.sampled_from(["test", "val"]),
)
def test_duplicates_and_groups_are_in_one_fold(
    copies: list[tuple[str, int]], by_group: bool, fold_as: str
) -> None:
    copied = [(f"{label}/copy{number:02}", content) for number, (label, content) in enumerate(copies)]
    single = [(path, int(path[2:5]) + 100 * (path[0] == "b")) for path in images_of({"a": 40, "b": 30})]
    named = sorted(copied + single)
    paths, contents = [path for path, _ in named], [content for _, content in named]
    if by_group:
        images = split_input(paths, groups=contents)
    else:
        images = split_input(paths, [str(content) for content in contents])
    splits = of_folds(images, 3, fold_as)
    fold_of = defaultdict(set)
    for content, *names in zip(contents, *splits, strict=True):
        fold_of[content].add(tuple(names))
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert all(names.count(fold_as) == 1 or set(names) == {"test"} for (names,) in fold_of.values())


def test_a_class_smaller_than_the_number_of_folds_is_named() -> None:
    paths = images_of({"a": 40, "b": 4, "c": 3})
    with pytest.raises(UserError) as refusal:
        of_folds(split_input(paths), 5)
    assert str(refusal.value) == (
        "split.folds=5 needs 5 images of each class to divide, but class 'c' has 3; 2 classes have too few; use"
        " fewer folds, add images or remove the class."
    )
    with pytest.raises(UserError, match=r"5 groups of each class to divide, but class 'b' has 4;"):
        of_folds(split_input(images_of({"a": 40, "b": 8}), groups=[-1] * 40 + [1, 1, 2, 2, 3, 3, 4, 4]), 5)
    with pytest.raises(UserError, match=r"5 different images of each class to divide, but class 'b' has 4;"):
        of_folds(split_input(images_of({"a": 40, "b": 8}), [*map(str, range(40)), *"wwxxyyzz"]), 5)


@given(st.lists(st.integers(0, 12), min_size=2, max_size=8), st.integers(0, 40))
def test_loads_are_leveled(loads: list[int], more: int) -> None:
    added = _level(np.array(loads), np.zeros(len(loads), int), more)
    result = loads + added
    assert added.sum() == more
    assert added.min() >= 0
    assert result[added > 0].max(initial=0) - result.min() <= 1
