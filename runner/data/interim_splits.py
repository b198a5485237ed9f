from collections import Counter, defaultdict
from collections.abc import Sequence
from fractions import Fraction
from math import ceil
from typing import NamedTuple

import numpy as np

from runner.config.data_schema import SplitConfig
from runner.config.schema import Experiment
from runner.data.images import SPLITS, Images
from runner.utils.errors import UserError
from runner.utils.hashing import digest


class ImageFile(NamedTuple):
    path: str
    label: str
    digest: str


def assign_splits(images: Images, given: object, experiment: Experiment) -> np.ndarray:
    files = [ImageFile(e[0], e[1], e[4]) for block in images.blocks() for e in block]
    got = _assign(files, experiment.split, experiment.seed.split)
    return np.array([SPLITS.index(got[f.path]) if f.path in got else -1 for f in files], np.int8)


def _assign(files: Sequence[ImageFile], split: SplitConfig, seed: int) -> dict[str, str]:
    """Path → split, stratified by class: a pure function of the seed, the paths and which files are identical.

    Within each class the images are ordered by a hash of (seed, path) and cut: the first part for test, the next for
    validation, the rest for training. So a new image or class changes the split of few others. Exact duplicates go
    together where the first of them by path goes. Sizes are rounded up for test, then for validation, as scikit-learn's
    `train_test_split` does when applied twice.

    Raises `UserError` naming the classes that have too few images for their splits.
    """
    duplicates: dict[str, list[ImageFile]] = defaultdict(list)
    for file in sorted(files, key=lambda file: file.path):
        duplicates[file.digest].append(file)
    by_class: dict[str, list[list[ImageFile]]] = defaultdict(list)
    for group in duplicates.values():
        by_class[group[0].label].append(group)
    splits: dict[str, str] = {}
    for _, groups in sorted(by_class.items()):
        groups.sort(key=lambda group: digest("split", seed, group[0].path))
        splits.update(_split_class(groups, split))
    _check_classes(files, splits)
    return splits


def _split_class(groups: Sequence[list[ImageFile]], split: SplitConfig) -> dict[str, str]:
    """Path → split for the groups of duplicates of one class, in their order. A group is never divided."""
    total = sum(map(len, groups))
    if split.by == "fraction":
        test = _share(total, split.test, split.train + split.val + split.test)
        val = _share(total - test, split.val, split.train + split.val)
        sizes = {"test": test, "val": val, "train": total - test - val}
    else:
        train, val = int(split.train), int(split.val)
        sizes = {"train": train, "val": val, "test": max(0, min(int(split.test), total - train - val))}
    splits: dict[str, str] = {}
    remaining = list(groups)
    for name, size in sizes.items():
        count = 0
        skipped: list[list[ImageFile]] = []
        for group in remaining:
            if count + len(group) <= size:
                count += len(group)
                splits.update((file.path, name) for file in group)
            else:
                skipped.append(group)
        remaining = skipped
    if split.by == "fraction":  # groups that fitted into no split
        splits.update((file.path, "train") for group in remaining for file in group)
    return splits


def _share(total: int, part: float, whole: float) -> int:
    """⌈total · part / whole⌉ in exact arithmetic: 24 · ⅓ is 8, not 9."""
    ratio = Fraction(part).limit_denominator(10**6) / Fraction(whole).limit_denominator(10**6)
    return ceil(total * ratio)


def _check_classes(files: Sequence[ImageFile], splits: dict[str, str]) -> None:
    """Raises `UserError` unless there are two classes and each has images in every split."""
    totals = Counter(file.label for file in files)
    counts = Counter((file.label, splits[file.path]) for file in files if file.path in splits)
    problems = []
    for label, total in sorted(totals.items()):
        if missing := [name for name in SPLITS if not counts[label, name]]:
            empty = f"{' and '.join(missing)} get{'s' * (len(missing) == 1)} none"
            problems.append(
                f"Class {label!r} has {total} image{'s' * (total != 1)}, too few for its splits ({empty})"
            )
    if problems:
        more = f"; {len(problems) - 10} more classes are too small" if len(problems) > 10 else ""
        raise UserError(
            f"{'; '.join(problems[:10])}{more}; add images, change split.*, or remove"
            f" {'the class' if len(problems) == 1 else 'these classes'}."
        )
    if len(totals) < 2:
        raise UserError(f"There is only one class ({next(iter(totals), 'none')}); at least two are needed.")
