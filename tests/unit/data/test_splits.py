"""Which split each image is in: a function of seed, paths and duplicates."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from split_images import images_of, names_of, split_input

from runner.config.data_schema import SplitConfig
from runner.data.columns import Paths
from runner.data.images import SPLITS
from runner.data.splitting.clusters import SplitInput, content_ids, split_keys
from runner.data.splitting.splits import assign_splits
from runner.utils.errors import UserError
from runner.utils.hashing import digest

sizes = st.dictionaries(st.sampled_from("abcdef"), st.integers(3, 40), min_size=2)

fractions = st.sampled_from(
    [SplitConfig(), SplitConfig("fraction", 0.6, 0.2, 0.2), SplitConfig("fraction", 0.4, 0.3, 0.3)]
)

counts = st.sampled_from([SplitConfig("count", 5, 3, 4), SplitConfig("count", 8, 4, 50)])

seeds = st.integers(0, 2**32)


def assign(paths: Sequence[str], split: SplitConfig, seed: int) -> dict[str, str | None]:
    """Path → split of distinct images."""
    ordered = sorted(paths)
    return dict(zip(ordered, names_of(assign_splits(split_input(ordered), split, seed)), strict=True))


def first_definition(
    paths: Sequence[str], contents: Sequence[str], split: SplitConfig, seed: int
) -> list[str | None]:
    """The split as it was first defined, one image at a time. Runs that were split so must be split so for ever."""
    duplicates: dict[str, list[str]] = defaultdict(list)
    for path, content in sorted(zip(paths, contents, strict=True)):
        duplicates[content].append(path)
    by_class: dict[str, list[list[str]]] = defaultdict(list)
    for group in duplicates.values():
        by_class[group[0].split("/")[0]].append(group)
    splits: dict[str, str] = {}
    for _, groups in sorted(by_class.items()):
        groups.sort(key=lambda group: digest("split", seed, group[0]))
        total = sum(map(len, groups))
        if split.by == "fraction":
            test = first_share(total, split.test, split.train + split.val + split.test)
            val = first_share(total - test, split.val, split.train + split.val)
            limits = {"test": test, "val": val, "train": total - test - val}
        else:
            train, val = int(split.train), int(split.val)
            limits = {"train": train, "val": val, "test": max(0, min(int(split.test), total - train - val))}
        remaining = list(groups)
        for name, limit in limits.items():
            count = 0
            skipped = []
            for group in remaining:
                if count + len(group) <= limit:
                    count += len(group)
                    splits.update((path, name) for path in group)
                else:
                    skipped.append(group)
            remaining = skipped
        if split.by == "fraction":
            splits.update((path, "train") for group in remaining for path in group)
    return [splits.get(path) for path in paths]


def first_share(total: int, part: float, whole: float) -> int:
    ratio = Fraction(part).limit_denominator(10**6) / Fraction(whole).limit_denominator(10**6)
    return ceil(total * ratio)


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 99)), max_size=150),
    st.sampled_from(["", "abc", "abcd"]),
    fractions | counts,
    seeds,
)
def test_the_split_is_the_first_one_image_by_image(
    images: list[tuple[str, int]], large: str, split: SplitConfig, seed: int
) -> None:
    images = images + [
        (label, 100 * place + number) for place, label in enumerate(large) for number in range(20)
    ]
    named = sorted((f"{label}/{number}.jpg", f"{content}") for number, (label, content) in enumerate(images))
    paths, contents = [path for path, _ in named], [content for _, content in named]
    expected = first_definition(paths, contents, split, seed)
    found = Counter((path[0], name) for path, name in zip(paths, expected, strict=True))
    labels = {path[0] for path in paths}
    if len(labels) > 1 and all(found[label, name] for label in labels for name in SPLITS):
        assert names_of(assign_splits(split_input(paths, contents), split, seed)) == expected
    else:
        with pytest.raises(UserError):
            assign_splits(split_input(paths, contents), split, seed)


@given(st.lists(st.text(min_size=1), max_size=20), seeds | st.integers(-9, 9))
def test_images_are_ordered_by_the_digest_of_seed_and_path(texts: list[str], seed: int) -> None:
    texts = [text.replace("\0", "").encode("utf-8", "ignore").decode() for text in texts]
    texts += ['"', "\\", "é\udcff", "\x7f"]
    keys = split_keys(Paths.of(texts), seed)
    assert [f"{high:016x}{low:016x}" for high, low in keys] == [
        digest("split", seed, text)[:32] for text in texts
    ]


def test_contents_are_compared_whole() -> None:
    digests = np.zeros((4, 20), np.uint8)
    digests[[1, 3], 19] = 7
    assert content_ids(digests).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("total", [4, 7, 24, 31, 45, 57, 100, 435, 800])
def test_split_sizes_are_those_of_scikit_learn_called_twice(total: int) -> None:
    rest, test = train_test_split(range(total), test_size=0.25, random_state=0)
    train, val = train_test_split(rest, test_size=1 / 3, random_state=0)
    assigned = assign(images_of({"a": total, "b": 4}), SplitConfig(), 0)
    counts = Counter(name for path, name in assigned.items() if path.startswith("a/"))
    assert counts == {"train": len(train), "val": len(val), "test": len(test)}


def test_with_counts_a_small_class_has_a_smaller_test_split() -> None:
    assigned = assign(images_of({"a": 60, "b": 33}), SplitConfig("count", 20, 10, 25), 0)
    counts = Counter((path[0], name) for path, name in assigned.items())
    assert [counts["a", name] for name in SPLITS] == [20, 10, 25]
    assert [counts["b", name] for name in SPLITS] == [20, 10, 3]


@pytest.mark.parametrize("split", [SplitConfig(), SplitConfig("count", 15, 10, 50)])
def test_a_class_too_small_for_its_splits_is_named(split: SplitConfig) -> None:
    with pytest.raises(
        UserError, match=r"Class 'tiny' has 2 images, too few for its splits \(.* none\); add"
    ):
        assign(images_of({"large": 40, "tiny": 2}), split, 0)


def test_a_single_class_is_refused() -> None:
    with pytest.raises(UserError, match=r"only one class \(alone\)"):
        assign(images_of({"alone": 8}), SplitConfig(), 0)


@given(sizes, fractions, seeds)
def test_every_image_is_in_one_split_and_every_class_in_proportion(
    sizes: dict[str, int], split: SplitConfig, seed: int
) -> None:
    assigned = assign(images_of(sizes), split, seed)
    assert set(assigned.values()) == set(SPLITS)
    for label, total in sizes.items():
        counts = Counter(name for path, name in assigned.items() if path.startswith(label))
        assert abs(counts["test"] - split.test * total) < 1 + 1e-9
        assert abs(counts["val"] - split.val * total) < 1 + 1e-9
        assert abs(counts["train"] - split.train * total) < 2
        assert counts["test"] == ceil(round(split.test * total, 9))


def test_another_seed_gives_another_split() -> None:
    images = images_of({"a": 40, "b": 40})
    assert len({frozenset(assign(images, SplitConfig(), seed).items()) for seed in range(5)}) == 5


@given(sizes, seeds, st.integers(3, 40))
def test_adding_a_class_moves_no_other_image(sizes: dict[str, int], seed: int, more: int) -> None:
    before = assign(images_of(sizes), SplitConfig(), seed)
    after = assign(images_of({**sizes, "new": more}), SplitConfig(), seed)
    assert {path: name for path, name in after.items() if not path.startswith("new/")} == before


@given(sizes, seeds)
def test_adding_an_image_moves_at_most_three_others(sizes: dict[str, int], seed: int) -> None:
    before = assign(images_of(sizes), SplitConfig(), seed)
    grown = {label: size + (label == min(sizes)) for label, size in sizes.items()}
    after = assign(images_of(grown), SplitConfig(), seed)
    assert sum(after[path] != name for path, name in before.items()) <= 3


@pytest.mark.slow
@pytest.mark.parametrize("copies", [0, 1000])
def test_a_million_images_are_split_in_seconds_and_little_memory(copies: int) -> None:
    number = 1_000_000
    paths = Paths.of(f"class_{index // 1000:03}/image_{index:07}.jpg" for index in range(number))
    digests = np.random.default_rng(0).integers(0, 256, (number, 20), np.uint8)
    digests[:: number // max(copies, 1)] = digests[0]
    labels = np.arange(number, dtype=np.int32) // 1000
    images = SplitInput(paths, tuple(f"class_{label:03}" for label in range(1000)), labels, digests)
    start = time.process_time()
    splits = assign_splits(images, SplitConfig(), 0)
    assert time.process_time() - start < 10  # 2 s on a quiet machine
    assert abs((splits == 2).mean() - 0.25) < 0.001
    tracemalloc.start()
    assign_splits(images, SplitConfig(), 1)
    assert tracemalloc.get_traced_memory()[1] < 300 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("split", "columns"),
    [
        (SplitConfig(), {}),
        (SplitConfig(), {"groups": True}),
        (SplitConfig(), {"given": "test"}),
        (SplitConfig("count", 8, 4, 50), {}),
        (SplitConfig("count", 20, "rest", 5), {}),
        (SplitConfig(folds=3, fold_as="val"), {}),
        (SplitConfig(folds=3, fold=1), {}),
    ],
)
def test_another_seed_may_divide_what_is_not_for_the_test(
    split: SplitConfig, columns: dict[str, object]
) -> None:
    paths = images_of({"a": 40, "b": 31})
    images = split_input(
        paths,
        given=["test" if path.endswith("0.png") else None for path in paths] if "given" in columns else None,
        groups=[number // 2 for number in range(len(paths))] if "groups" in columns else None,
    )
    usual = names_of(assign_splits(images, split, 1))
    divided = [names_of(assign_splits(images, split, 1, seed)) for seed in range(4)]
    for names in divided:
        assert Counter(names) == Counter(usual)
        for part in ("test", None):
            assert [name == part for name in names] == [name == part for name in usual]
        if "groups" in columns:
            assert all(len(set(names[start : start + 2])) == 1 for start in range(0, 70, 2))
    assert divided[1] == usual
    assert len({tuple(names) for names in divided}) == 4


def test_validation_images_that_the_data_give_stay_with_any_seed() -> None:
    paths = images_of({"a": 20, "b": 20})
    images = split_input(paths, given=["val" if path.endswith("0.png") else None for path in paths])
    one, other = (names_of(assign_splits(images, SplitConfig(), 0, seed)) for seed in (None, 5))
    assert one == other
