"""The manifest: which image is in which class and which split, with its size and content digest."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import ceil
from pathlib import Path

from runner.config.schema import Experiment, SplitConfig
from runner.data.datasets import locate
from runner.data.depth import depth_remarks, gray_images, resolve_depth
from runner.data.remarks import class_size_remark, conflict_remark, unused_remarks
from runner.data.scan import ImageFile, Scan, scan_images
from runner.utils.console import Terminal
from runner.utils.csv_text import to_csv
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.paths import cache_folder
from runner.utils.text import counted, named, valid_unicode

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "class", "split", "size", "digest")


@dataclass(frozen=True, slots=True)
class Entry:
    """An image: `path` relative to the manifest's root, class name, split, size in bytes, digest of the file."""

    path: str
    label: str
    split: str
    size: int
    digest: str


@dataclass(frozen=True)
class Manifest:
    """The images of an experiment, sorted by path."""

    root: Path
    entries: tuple[Entry, ...]
    rejected: tuple[ImageFile, ...] = ()
    unused: int = 0
    """Images that split.by=count assigns to no split."""
    depth: int | None = None
    """What data.depth=auto stands for with these images, if they have gray values of 32 bits or floating-point ones."""
    remarks: tuple[str, ...] = ()
    """What the user should know about the folder: each one a sentence without its end."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted. A class's index is its position."""
        return tuple(sorted({entry.label for entry in self.entries}))

    def select(self, split: str) -> tuple[Entry, ...]:
        """The entries of a split, sorted by path."""
        return tuple(entry for entry in self.entries if entry.split == split)

    def labels(self, split: str) -> list[int]:
        """The class index of each entry of a split."""
        indices = {name: index for index, name in enumerate(self.classes)}
        return [indices[entry.label] for entry in self.select(split)]

    def without(self, split: str) -> Manifest:
        """A manifest without the entries of a split."""
        entries = tuple(entry for entry in self.entries if entry.split != split)
        return dataclasses.replace(self, entries=entries)

    @cached_property
    def duplicates(self) -> int:
        """Images beyond the first of each group with identical content."""
        return len(self.entries) - len({entry.digest for entry in self.entries})

    @cached_property
    def digest(self) -> str:
        """Digest of paths, classes, splits and contents."""
        return digest([(e.path, e.label, e.split, e.digest) for e in self.entries])

    def to_csv(self) -> str:
        """The entries as a table with a header."""
        return to_csv(COLUMNS, [(e.path, e.label, e.split, e.size, e.digest) for e in self.entries])

    def rejected_to_csv(self) -> str:
        """The files that are not images, with the reason."""
        return to_csv(
            ("path", "class", "size", "reason"), [(f.path, f.label, f.size, f.error) for f in self.rejected]
        )


def parse_manifest(text: str, root: Path) -> Manifest:
    """The manifest that `Manifest.to_csv` wrote. Raises `UserError` if the table is not one."""
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        if tuple(header) != COLUMNS:
            raise ValueError(header)
    except (ValueError, csv.Error):
        raise UserError("The manifest was not written by the runner.") from None
    entries = []
    for number, row in enumerate(rows, 1):
        if problem := _row_problem(row):
            raise UserError(f"The manifest was not written by the runner: {problem} in row {number}.")
        path, label, split, size, content = row
        entries.append(Entry(path, label, split, int(size), content))
    if any(first.path >= second.path for first, second in itertools.pairwise(entries)):
        raise UserError("The manifest was not written by the runner: its paths are not sorted and unique.")
    return Manifest(root, tuple(entries))


def _row_problem(row: Sequence[str]) -> str | None:
    """Why a row cannot be one of a manifest; None if it can."""
    if len(row) != len(COLUMNS):
        return f"{len(row)} cells"
    path, label, split, size, content = row
    parts = path.split("/")
    if valid_unicode(parts[0]) != label or len(parts) < 2 or {"", ".", ".."} & set(parts) or "\0" in path:
        return "a path outside its class folder"
    if split not in SPLITS:
        return "an unknown split"
    if not re.fullmatch("0|[1-9][0-9]{0,17}", size):
        return "a size that is not a number of bytes"
    return None if re.fullmatch("[0-9a-f]{40}", content) else "an invalid digest"


def build_manifest(experiment: Experiment, terminal: Terminal) -> Manifest:
    """Locate, scan and split an experiment's images.

    Raises `UserError` for missing data, for unreadable files (unless `data.unreadable=skip`) and for classes
    with too few images.
    """
    cache = cache_folder(experiment.cache)
    folder = locate(experiment.data, cache, terminal)
    scan = scan_images(folder, cache, experiment.data.follow_links, terminal)
    rejected = tuple(file for file in scan.files if file.error)
    if rejected and experiment.data.unreadable == "stop":
        reasons = [f"{folder.root / file.path} {file.error}" for file in rejected[:5]]
        more = f" and {len(rejected) - 5:,} more" if len(rejected) > 5 else ""
        raise UserError(
            f"{len(rejected):,} of {len(scan.files):,} files cannot be used: {'; '.join(reasons)}{more};"
            " repair or remove them, or set data.unreadable=skip to leave them out."
        )
    images = [file for file in scan.files if not file.error] if rejected else scan.files
    _check_folders(scan, images)
    splits = assign_splits(images, experiment.split, experiment.seed.split)
    entries = tuple(
        Entry(file.path, file.label, splits[file.path], file.size, file.digest)
        for file in images
        if file.path in splits
    )
    setting = experiment.data.depth
    gray = gray_images(file.gray for file in images)
    depth = resolve_depth(gray) if setting == "auto" else setting
    remarks = (
        *unused_remarks(scan.listing),
        *conflict_remark(images),
        *class_size_remark(images),
        *depth_remarks(gray, setting, depth),
    )
    return Manifest(folder.root, entries, rejected, len(images) - len(entries), depth, remarks)


def _check_folders(scan: Scan, images: Sequence[ImageFile]) -> None:
    """Raises `UserError` for class folders without images."""
    labels = {file.label for file in images}
    empty = [name for name in scan.listing.classes if valid_unicode(name) not in labels]
    if not empty:
        return
    paths = named([str(scan.listing.root / name) for name in empty])
    links = [path for path in scan.listing.links if path.split("/", 1)[0] in empty]
    broken = [path for path in scan.listing.broken_links if path.split("/", 1)[0] in empty]
    plural = len(empty) > 1
    problem = f"The class folder{'s' * plural} {paths} hold{'s' * (not plural)} no image"
    if links:
        raise UserError(
            f"{problem} but {counted(len(links), 'link')} ({named(links)}), not followed; set data.follow_links=true."
        )
    if broken:
        raise UserError(
            f"{problem} but {counted(len(broken), 'link')} to nowhere ({named(broken)}); fetch what they lead to."
        )
    raise UserError(f"{problem}; fill or remove {'them' if plural else 'it'}.")


def assign_splits(files: Sequence[ImageFile], split: SplitConfig, seed: int) -> dict[str, str]:
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
