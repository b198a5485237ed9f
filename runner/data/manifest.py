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

from runner.config.schema import Experiment, Split
from runner.data.datasets import Source, locate
from runner.data.scan import ImageFile, scan_images
from runner.utils.console import Terminal
from runner.utils.csv_text import to_csv
from runner.utils.errors import UserError
from runner.utils.hashing import digest

SPLITS = ("train", "val", "test")
COLUMNS = ("path", "class", "split", "size", "digest")


@dataclass(frozen=True)
class Entry:
    """An image of the manifest; `path` is relative to the manifest's root, `size` in bytes."""

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
    """Images that split.by=count left over."""

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted; a class's place is its index."""
        return tuple(sorted({entry.label for entry in self.entries}))

    def select(self, split: str) -> tuple[Entry, ...]:
        """The entries of a split, sorted by path."""
        return tuple(entry for entry in self.entries if entry.split == split)

    def labels(self, split: str) -> list[int]:
        """The class index of each entry of a split."""
        index = {name: place for place, name in enumerate(self.classes)}
        return [index[entry.label] for entry in self.select(split)]

    def without(self, split: str) -> Manifest:
        """The same images but for those of a split."""
        kept = tuple(entry for entry in self.entries if entry.split != split)
        return dataclasses.replace(self, entries=kept)

    @cached_property
    def duplicates(self) -> int:
        """Images whose very content another image has too."""
        return len(self.entries) - len({entry.digest for entry in self.entries})

    @cached_property
    def digest(self) -> str:
        """Digest of paths, classes, splits and contents."""
        return digest([(e.path, e.label, e.split, e.digest) for e in self.entries])

    def as_csv(self) -> str:
        """The entries as a table with a header."""
        return to_csv(
            COLUMNS,
            [(e.path, e.label, e.split, e.size, e.digest) for e in self.entries],
        )

    def rejected_to_csv(self) -> str:
        """The files that are no images, with the reason."""
        return to_csv(
            ("path", "class", "size", "reason"), [(f.path, f.label, f.size, f.fault) for f in self.rejected]
        )


def parse_manifest(text: str, root: Path) -> Manifest:
    """The manifest that `Manifest.to_csv` wrote. Raises `UserError` where the table is another's."""
    try:
        header, *rows = csv.reader(io.StringIO(text, newline=""))
        if tuple(header) != COLUMNS:
            raise ValueError(header)
    except (ValueError, csv.Error):
        raise UserError("The manifest is not one that the runner wrote.") from None
    entries = []
    for number, row in enumerate(rows, 1):
        if fault := _fault(row):
            raise UserError(f"The manifest is not one that the runner wrote: {fault} in its row {number}.")
        path, label, split, size, content = row
        entries.append(Entry(path, label, split, int(size), content))
    if any(one.path >= two.path for one, two in itertools.pairwise(entries)):
        raise UserError("The manifest is not one that the runner wrote: its paths are not sorted, each once.")
    return Manifest(root, tuple(entries))


def _fault(row: Sequence[str]) -> str | None:
    """What of a row of a manifest cannot be; None where it is sound."""
    if len(row) != len(COLUMNS):
        return f"{len(row)} cells"
    path, label, split, size, content = row
    parts = path.split("/")
    if parts[0] != label or len(parts) < 2 or {"", ".", ".."} & set(parts) or "\0" in path:
        return "a path that does not lie in its class"
    if split not in SPLITS:
        return "a split of another name"
    if not re.fullmatch("0|[1-9][0-9]{0,17}", size):
        return "a size that is no number of bytes"
    return None if re.fullmatch("[0-9a-f]{40}", content) else "a digest that is none"


def build_manifest(experiment: Experiment, terminal: Terminal) -> Manifest:
    """Locate, scan and split an experiment's images.

    Raises `UserError` for missing data, for unreadable files (unless `data.unreadable=skip`) and for classes
    with too few images.
    """
    cache = Path(experiment.cache).expanduser()
    source = locate(experiment.data, cache, terminal)
    files = scan_images(source, cache, experiment.data.follow_links, terminal)
    rejected = tuple(file for file in files if file.error)
    if rejected and experiment.data.unreadable == "stop":
        named = "; ".join(f"{source.root / file.path} {file.error}" for file in rejected[:5])
        more = f" and {len(rejected) - 5} more" if len(rejected) > 5 else ""
        raise UserError(
            f"{len(rejected)} of {len(files)} files cannot be used: {named}{more};"
            " mend or remove them, or set data.unreadable=skip to leave them out."
        )
    good = [file for file in files if not file.error]
    _check_folders(source, experiment.data.follow_links, good)
    assigned = assign_splits(good, experiment.split, experiment.seed.split)
    entries = tuple(
        Entry(file.path, file.label, assigned[file.path], file.size, file.digest)
        for file in good
        if file.path in assigned
    )
    return Manifest(source.root, entries, rejected, len(good) - len(entries))


def _check_folders(source: Source, follow_links: bool, files: Sequence[ImageFile]) -> None:
    filled = {file.label for file in files}
    for folder in sorted(source.root.iterdir()):
        passed = folder.name.startswith(".") or folder.name in source.without
        passed = passed or (folder.is_symlink() and not follow_links)
        if folder.is_dir() and not passed and folder.name not in filled:
            raise UserError(f"The class folder {folder} holds no image; fill or remove it.")


def assign_splits(files: Sequence[ImageFile], split: Split, split_seed: int) -> dict[str, str]:
    """Path → split, stratified by class: a pure function of the seed, the paths and which files are equal.

    Within each class the images are put in an order drawn for (seed, path) and cut: the first for test, the
    next for validation, the rest for training, so that a new image or class moves hardly any other. Exact
    duplicates go, as one, where the first of them by path goes. As scikit-learn's `train_test_split`, applied
    twice, does, numbers are rounded up for test and then for validation.

    Raises `UserError` naming the class that has too few images for its splits.
    """
    twins: dict[str, list[ImageFile]] = defaultdict(list)
    for file in sorted(files, key=lambda file: file.path):
        twins[file.digest].append(file)
    members: dict[str, list[list[ImageFile]]] = defaultdict(list)
    for group in twins.values():
        members[group[0].label].append(group)
    assigned: dict[str, str] = {}
    for _, groups in sorted(members.items()):
        groups.sort(key=lambda group: digest("split", split_seed, group[0].path))
        _cut(groups, split, assigned)
    _check_classes(files, assigned)
    return assigned


def _cut(groups: list[list[ImageFile]], split: Split, assigned: dict[str, str]) -> None:
    """Fill test, then validation, then training with whole groups."""
    total = sum(map(len, groups))
    if split.by == "fraction":
        test = _share(total, split.test, split.train + split.val + split.test)
        val = _share(total - test, split.val, split.train + split.val)
        wanted = {"test": test, "val": val, "train": total - test - val}
    else:
        train, val = int(split.train), int(split.val)
        wanted = {"train": train, "val": val, "test": max(0, min(int(split.test), total - train - val))}
    rest = list(groups)
    for name, number in wanted.items():
        taken = 0
        held: list[list[ImageFile]] = []
        for group in rest:
            if taken + len(group) <= number:
                taken += len(group)
                assigned.update((file.path, name) for file in group)
            else:
                held.append(group)
        rest = held
    if split.by == "fraction":  # groups too large for what was left
        for group in rest:
            assigned.update((file.path, "train") for file in group)


def _share(total: int, part: float, whole: float) -> int:
    """⌈total · part / whole⌉ in exact arithmetic: 24 · ⅓ is 8, not 9."""
    ratio = Fraction(part).limit_denominator(10**6) / Fraction(whole).limit_denominator(10**6)
    return ceil(total * ratio)


def _check_classes(files: Sequence[ImageFile], assigned: dict[str, str]) -> None:
    counts = Counter((file.label, assigned[file.path]) for file in files if file.path in assigned)
    labels = sorted({file.label for file in files})
    for label in labels:
        for name in SPLITS:
            if not counts[label, name]:
                has = sum(file.label == label for file in files)
                raise UserError(
                    f"Class {label!r} has {has} image{'s' * (has != 1)}, too few for its splits ({name} gets none);"
                    " add images, change split.*, or remove the class."
                )
    if len(labels) < 2:
        raise UserError(
            f"There is one class only ({labels[0] if labels else 'none'}); at least two are needed."
        )
