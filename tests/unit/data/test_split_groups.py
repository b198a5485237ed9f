"""Groups of images are never divided; classes are in proportion as far as groups permit."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold
from split_images import images_of, names_of, split_input

import runner.data.splitting.stratify_groups
from runner.config.data_schema import SplitConfig
from runner.data.columns import Paths
from runner.data.images import SPLITS
from runner.data.splitting.checks import split_remarks
from runner.data.splitting.clusters import cluster_ids, content_ids, form_clusters
from runner.data.splitting.splits import assign_splits
from runner.data.splitting.stratify_groups import divide_groups
from runner.utils.errors import UserError

FOLDS = 5

mixed = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1, 40)), min_size=40, max_size=150)


def paths_and_groups(images: Sequence[tuple[str, int]]) -> tuple[list[str], list[int]]:
    """Paths, sorted, of images that are given by class and group."""
    named = sorted((f"{label}/{number:04}", group) for number, (label, group) in enumerate(images))
    return [path for path, _ in named], [group for _, group in named]


def patients(seed: int, number: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """Labels and groups of images whose groups have some of each of five classes, of unequal frequency."""
    random = np.random.default_rng(seed)
    labels, groups = [], []
    for group in range(number):
        size = int(random.geometric(0.1))
        frequencies = random.dirichlet([1.5, 0.8, 0.4, 0.3, 0.2])
        labels += random.choice(5, size, p=frequencies).tolist()
        groups += [group] * size
    order = random.permutation(len(labels))
    return np.array(labels, np.int32)[order], np.array(groups, np.int32)[order]


def folds_of(labels: np.ndarray, groups: np.ndarray, names: Sequence[str] | None = None) -> np.ndarray:
    paths = Paths.of(names or [f"{number:05}" for number in range(len(labels))])
    clusters, members = form_clusters(paths, labels, groups, 0)
    return divide_groups(clusters, lambda total: [total / FOLDS] * FOLDS, range(FOLDS))[members]


def unevenness(labels: np.ndarray, folds: np.ndarray) -> float:
    """Standard deviation over folds of the fraction of a class's images, mean over classes."""
    sizes = np.zeros((labels.max() + 1, FOLDS))
    np.add.at(sizes, (labels, folds), 1)
    return float((sizes / sizes.sum(axis=1, keepdims=True)).std(axis=1).mean())


@given(mixed, st.sampled_from([SplitConfig(), SplitConfig("count", 8, 4, 5)]), st.integers(0, 99))
def test_no_group_is_in_two_splits(images: list[tuple[str, int]], split: SplitConfig, seed: int) -> None:
    paths, groups = paths_and_groups(images)
    contents = [str(number % 97) for number in range(len(paths))]  # some are duplicates
    try:
        splits = names_of(assign_splits(split_input(paths, contents, groups=groups), split, seed))
    except UserError:  # groups that leave a split without a class
        return
    for column in (groups, contents):
        found = defaultdict(set)
        for value, name in zip(column, splits, strict=True):
            found[value].add(name)
        assert all(len(names) == 1 for value, names in found.items() if value != -1)
    assert {(path[0], name) for path, name in zip(paths, splits, strict=True)} >= {
        (path[0], name) for path in paths for name in SPLITS
    }


def test_groups_of_single_images_change_nothing() -> None:
    paths = images_of({"a": 40, "b": 33})
    plain = assign_splits(split_input(paths), SplitConfig(), 5)
    single = assign_splits(split_input(paths, groups=range(len(paths))), SplitConfig(), 5)
    assert single.tolist() == plain.tolist()


def test_groups_that_share_images_are_one() -> None:
    digests = np.arange(6, dtype=np.uint8).repeat(20).reshape(-1, 20)
    digests[5] = digests[0]
    one, other = np.array([4, 4, -1, 9, -1, -1]), np.array([-1, 3, 3, -1, -1, -1])
    assert cluster_ids(content_ids(digests), one, None, other).tolist() == [0, 0, 0, 1, 2, 0]


@pytest.mark.parametrize("seed", range(4))
def test_folds_are_as_even_as_those_of_scikit_learn(seed: int) -> None:
    labels, groups = patients(seed)
    own = folds_of(labels, groups)
    theirs = np.zeros_like(own)
    splitter = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    for fold, (_, test) in enumerate(splitter.split(labels, labels, groups)):
        theirs[test] = fold
    assert unevenness(labels, own) < unevenness(labels, theirs) + 0.01


def test_a_new_image_moves_few_others() -> None:
    moved = []
    for seed in range(8):
        labels, groups = patients(seed)
        names = [f"{number:05}" for number in range(len(labels))]
        more = (np.append(labels, 2), np.append(groups, groups[7]), [*names, "new"])
        moved.append(np.mean(folds_of(*more)[:-1] != folds_of(labels, groups, names)))
    assert np.mean(moved) < 0.1


def test_many_classes_are_improved_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """One class after the other, a million images in groups would take minutes."""
    labels = np.repeat(np.arange(300, dtype=np.int32), 200)
    groups = np.arange(len(labels), dtype=np.int32) // 3
    expected = folds_of(labels, groups)
    monkeypatch.setattr(runner.data.splitting.stratify_groups, "MOST_PASSES", 20)
    assert np.array_equal(folds_of(labels, groups), expected)


def test_a_class_in_few_groups_is_in_every_split() -> None:
    images = [("a", number // 4) for number in range(200)]
    rare = [("b", 3), ("b", 11), ("b", 19)]  # three groups of class a hold all of class b
    for seed in range(10):
        paths, groups = paths_and_groups(images + rare)
        splits = names_of(assign_splits(split_input(paths, groups=groups), SplitConfig(), seed))
        assert {name for path, name in zip(paths, splits, strict=True) if path[0] == "b"} == set(SPLITS)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([1, 1, 1, 1], "has 4 images in one group (that of b/000.png), too few for its splits"),
        ([1, 1, 2, 2], "has 4 images in 2 groups, too few for its splits"),
    ],
)
def test_groups_that_leave_a_split_without_a_class_are_named(groups: list[int], message: str) -> None:
    paths = images_of({"a": 40, "b": 4})
    with pytest.raises(UserError) as refusal:
        assign_splits(split_input(paths, groups=[-1] * 40 + groups), SplitConfig(), 0)
    assert f"Class 'b' {message}" in str(refusal.value)
    assert str(refusal.value).endswith("add images of other groups, change split.*, or remove the class.")


def test_groups_in_several_given_splits_are_refused() -> None:
    paths = images_of({f"{name}/{label}": 4 for name in SPLITS for label in "ab"})
    groups = [5 if path.endswith("a/002.png") else -1 for path in paths]
    with pytest.raises(UserError) as refusal:
        assign_splits(
            split_input(paths, given=[path.split("/")[0] for path in paths], groups=groups), SplitConfig(), 0
        )
    assert str(refusal.value) == (
        "1 group is in more than one split that the data give: train/a/002.png (train) and val/a/002.png (val);"
        " val/a/002.png (val) and test/a/002.png (test); correct the groups or the splits, or leave out split.group."
    )


@pytest.mark.parametrize(
    ("given_splits", "groups", "message"),
    [
        # Identical images without a split, whose groups are in two of them.
        (("val", None, "test", None), (0, 0, 1, 1), "a/001.png must be in val and .*identical"),
        # A training image, and one of its group that is identical to a test image.
        (("train", None, "test", "test"), (0, 0, -1, -1), "a/000.png must be in train and .*of one group"),
    ],
)
def test_groups_and_duplicates_that_contradict_given_splits_are_refused(
    given_splits: tuple[str | None, ...], groups: tuple[int, ...], message: str
) -> None:
    paths = images_of({"a": 30, "b": 30})
    contents = ["same" if path in ("a/001.png", "a/003.png") else path for path in paths]
    images = split_input(
        paths,
        contents,
        given=[*given_splits, *("train", "val", "test", "train") * 14],
        groups=[*groups, *[-1] * 56],
    )
    with pytest.raises(UserError, match=message):
        assign_splits(images, SplitConfig(), 0)


def test_a_group_that_leaves_nothing_to_divide_is_named() -> None:
    paths = images_of({f"{name}/{label}": 8 for name in ("train", "test") for label in "ab"})
    contents = [path.rpartition("/")[2] if path.endswith("a/000.png") else path for path in paths]
    groups = [path.startswith("train") for path in paths]
    images = split_input(paths, contents, given=[path.split("/")[0] for path in paths], groups=groups)
    with pytest.raises(UserError) as refusal:
        assign_splits(images, SplitConfig(), 0)
    assert str(refusal.value).startswith(
        "Class 'a' has only images that belong to images with a given split (val gets none); Class 'b'"
    )


def test_an_image_whose_group_has_a_given_test_image_is_a_test_image() -> None:
    paths = images_of({"a": 30, "b": 30})
    given_splits = ["test" if path.endswith("0.png") else None for path in paths]
    groups = [int(path[2:5]) // 2 if path < "a/004" else -1 for path in paths]
    splits = names_of(assign_splits(split_input(paths, given=given_splits, groups=groups), SplitConfig(), 0))
    assert splits[:2] == ["test", "test"]
    assert splits.count("test") == 7


def test_given_splits_may_divide_near_duplicates() -> None:
    paths = images_of({f"{name}/{label}": 8 for name in ("train", "test") for label in "ab"})
    similar = [3 if path.endswith("a/002.png") else -1 for path in paths]
    images = split_input(paths, given=[path.split("/")[0] for path in paths], similar=similar)
    for seed in range(4):
        splits = dict(zip(paths, names_of(assign_splits(images, SplitConfig(), seed)), strict=True))
        assert (splits["train/a/002.png"], splits["test/a/002.png"]) == ("train", "test")


def test_uneven_splits_are_mentioned() -> None:
    paths = images_of({"a": 40, "b": 40})
    groups = [1 if path[2:] < "030" else -1 for path in paths]
    images = split_input(paths, groups=groups)
    splits = assign_splits(images, SplitConfig(), 0)
    assert Counter(names_of(splits))["train"] > 55
    (remark,) = split_remarks(images, SplitConfig(), splits)
    assert remark.startswith("groups make the splits uneven: train 7")
