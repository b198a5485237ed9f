"""Which split each image is in: a function of seed, paths and duplicates."""

from __future__ import annotations

from collections import Counter
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split

from runner.config.schema import SplitConfig
from runner.data.manifest import SPLITS, assign_splits
from runner.data.scan import ImageFile
from runner.utils.errors import UserError

sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 40), min_size=2)

fractions = st.sampled_from(
    [SplitConfig(), SplitConfig("fraction", 0.6, 0.2, 0.2), SplitConfig("fraction", 0.4, 0.3, 0.3)]
)

seeds = st.integers(0, 2**32)


def files(sizes: dict[str, int]) -> list[ImageFile]:
    """Distinct images: `{class: count}`."""
    return [
        ImageFile(f"{label}/{number:03}.png", label, 100, f"{label}-{number}")
        for label, size in sizes.items()
        for number in range(size)
    ]


@pytest.mark.parametrize("total", [4, 7, 24, 31, 45, 57, 100, 435, 800])
def test_split_sizes_are_those_of_scikit_learn_called_twice(total: int) -> None:
    rest, test = train_test_split(range(total), test_size=0.25, random_state=0)
    train, val = train_test_split(rest, test_size=1 / 3, random_state=0)
    assigned = assign_splits(files({"a": total, "b": 4}), SplitConfig(), 0)
    counts = Counter(name for path, name in assigned.items() if path.startswith("a/"))
    assert counts == {"train": len(train), "val": len(val), "test": len(test)}


def test_with_counts_a_small_class_has_a_smaller_test_split() -> None:
    assigned = assign_splits(files({"a": 60, "b": 33}), SplitConfig("count", 20, 10, 25), 0)
    counts = Counter((path[0], name) for path, name in assigned.items())
    assert [counts["a", name] for name in SPLITS] == [20, 10, 25]
    assert [counts["b", name] for name in SPLITS] == [20, 10, 3]


@pytest.mark.parametrize("split", [SplitConfig(), SplitConfig("count", 15, 10, 50)])
def test_a_class_too_small_for_its_splits_is_named(split: SplitConfig) -> None:
    with pytest.raises(UserError, match=r"Class 'tiny' has 2 images, too few for its splits"):
        assign_splits(files({"large": 40, "tiny": 2}), split, 0)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"only one class \(alone\)"):
        assign_splits(files({"alone": 8}), SplitConfig(), 0)


@given(sizes, fractions, seeds)
def test_every_image_is_in_one_split_and_every_class_in_proportion(
    sizes: dict[str, int], split: SplitConfig, seed: int
) -> None:
    images = files(sizes)
    assigned = assign_splits(images, split, seed)
    assert assigned.keys() == {image.path for image in images}
    assert set(assigned.values()) == set(SPLITS)
    for label, total in sizes.items():
        counts = Counter(name for path, name in assigned.items() if path.startswith(label))
        assert abs(counts["test"] - split.test * total) < 1 + 1e-9
        assert abs(counts["val"] - split.val * total) < 1 + 1e-9
        assert abs(counts["train"] - split.train * total) < 2
        assert counts["test"] == ceil(round(split.test * total, 9))


@given(sizes, seeds, st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_of_files(
    sizes: dict[str, int], seed: int, random: object
) -> None:
    images = files(sizes)
    shuffled = list(images)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert assign_splits(shuffled, SplitConfig(), seed) == assign_splits(images, SplitConfig(), seed)


def test_another_seed_gives_another_split() -> None:
    images = files({"a": 40, "b": 40})
    assert len({frozenset(assign_splits(images, SplitConfig(), seed).items()) for seed in range(5)}) == 5


@given(sizes, seeds, st.integers(3, 40))
def test_adding_a_class_moves_no_other_image(sizes: dict[str, int], seed: int, more: int) -> None:
    before = assign_splits(files(sizes), SplitConfig(), seed)
    after = assign_splits(files({**sizes, "new": more}), SplitConfig(), seed)
    assert {path: name for path, name in after.items() if not path.startswith("new/")} == before


@given(sizes, seeds)
def test_adding_an_image_moves_at_most_three_others(sizes: dict[str, int], seed: int) -> None:
    before = assign_splits(files(sizes), SplitConfig(), seed)
    grown = {label: size + (label == min(sizes)) for label, size in sizes.items()}
    after = assign_splits(files(grown), SplitConfig(), seed)
    assert sum(after[path] != name for path, name in before.items()) <= 3


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30)), min_size=1, max_size=40),
    st.sampled_from([SplitConfig(), SplitConfig("count", 8, 4, 5)]),
    seeds,
)
def test_duplicates_stay_in_one_split(copies: list[tuple[str, int]], split: SplitConfig, seed: int) -> None:
    copies_of_a = [
        ImageFile(f"{label}/copy{index:03}.png", label, 100, f"a-{number}")
        for index, (label, number) in enumerate(copies)
    ]
    images = files({"a": 60, "b": 30}) + copies_of_a
    assigned = assign_splits(images, split, seed)
    splits: dict[str, set[str | None]] = {}
    for image in images:
        splits.setdefault(image.digest, set()).add(assigned.get(image.path))
    assert all(len(names) == 1 for names in splits.values())
    assert len(splits) == 90
