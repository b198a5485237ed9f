"""The manifest: which image is in which class and which split, with its size and content digest."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from runner.config.data_schema import SplitConfig
from runner.config.schema import Experiment
from runner.data.columns import Paths
from runner.data.dataset_listing import list_dataset
from runner.data.depth import GrayImages, depth_remarks, gray_images, resolve_depth
from runner.data.files import ImageFiles
from runner.data.images import NO_SPLIT, SPLITS, Images, pack_digests
from runner.data.listing import Listing
from runner.data.remarks import image_remarks
from runner.data.scan import Verdicts, scan_images
from runner.data.splitting.checks import split_remarks
from runner.data.splitting.clusters import SplitInput
from runner.data.splitting.groups import path_groups
from runner.data.splitting.leaks import leak_remarks
from runner.data.splitting.near_duplicates import NearDuplicates, find_near_duplicates, near_duplicate_remarks
from runner.data.splitting.splits import assign_splits, fold_split
from runner.utils.console import Terminal
from runner.utils.csv_text import to_csv
from runner.utils.errors import UserError
from runner.utils.paths import cache_folder
from runner.utils.text import named, one_line, printable

COLUMNS = ("path", "class", "split", "size", "digest")
MAX_CELL = 100_000
"""Bytes. No file system has longer paths."""


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that is not an image: its path, class, size in bytes, and the reason."""

    path: str
    label: str
    size: int
    error: str


@dataclass(frozen=True)
class Manifest:
    """The images of an experiment, sorted by path."""

    files: ImageFiles
    """Reads them."""
    entries: Images
    rejected: tuple[RejectedFile, ...] = ()
    unused: int = 0
    """Images that split.by=count assigns to no split."""
    depth: int | None = None
    """What data.depth=auto stands for with these images, if they have gray values of 32 bits or floating-point ones."""
    layout: str = field(default="", compare=False)
    """How the images lie, for people."""
    remarks: tuple[str, ...] = ()
    """What the user should know about the dataset: each one a sentence without its end."""
    fold: str = field(default="", compare=False)
    """The split that a fold is, with split.folds."""

    @property
    def root(self) -> Path:
        """The folder or archive of the images."""
        return self.files.root

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, sorted. A class's index is its position."""
        return self.entries.classes

    def select(self, split: str) -> Images:
        """The images of a split, sorted by path."""
        return self.entries.take(self.entries.splits == SPLITS.index(split))

    def counts(self) -> dict[str, int]:
        """The number of images of each split."""
        numbers = np.bincount(self.entries.splits, minlength=len(SPLITS))
        return dict(zip(SPLITS, numbers.tolist(), strict=True))

    def labels(self, split: str) -> np.ndarray:
        """The class index of each image of a split, int64."""
        return self.entries.labels[self.entries.splits == SPLITS.index(split)].astype(np.int64)

    def without(self, split: str) -> Manifest:
        """A manifest without the images of a split."""
        kept = self.entries.take(self.entries.splits != SPLITS.index(split))
        return dataclasses.replace(self, entries=kept)

    @cached_property
    def duplicates(self) -> int:
        """Images beyond the first of each group with identical content."""
        return len(self.entries) - len(np.unique(self.entries.digest_values))

    @cached_property
    def digest(self) -> str:
        """Digest of paths, classes, splits and contents."""
        return self.entries.digest()

    def to_csv(self) -> str:
        """The images as a table with a header."""
        return to_csv(COLUMNS, itertools.chain.from_iterable(self.entries.blocks()))

    def rejected_to_csv(self) -> str:
        """The files that are not images, with the reason."""
        return to_csv(
            ("path", "class", "size", "reason"), [(f.path, f.label, f.size, f.error) for f in self.rejected]
        )


def parse_manifest(text: str, files: ImageFiles) -> Manifest:
    """The manifest that `Manifest.to_csv` wrote, of images in `files`. Raises `UserError` if the table is not one."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import csv

    types = {"path": pa.large_binary(), **dict.fromkeys(COLUMNS[1:], pa.large_string())}
    try:
        table = csv.read_csv(
            pa.BufferReader(os.fsencode(text)),
            parse_options=csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False),
            convert_options=csv.ConvertOptions(column_types=types, strings_can_be_null=False),
        )
        if tuple(table.column_names) != COLUMNS or text.startswith("\ufeff"):
            raise ValueError("other columns")
        if not len(table):
            raise ValueError("no image")
    except ValueError as error:  # also of Arrow
        raise UserError(
            f"The manifest was not written by the runner ({one_line(str(error), 200)})."
        ) from None
    columns = {name: table[name].combine_chunks() for name in COLUMNS}
    for problem, mask in _row_problems(columns):
        if (row := pc.index(mask, True).as_py()) >= 0:
            raise UserError(f"The manifest was not written by the runner: {problem} in row {row + 1}.")
    paths = Paths(columns["path"])
    _check_order(paths)
    labels = columns["class"].dictionary_encode()
    names = labels.dictionary.to_pylist()
    classes = sorted(names)
    number = {name: index for index, name in enumerate(classes)}
    images = Images(
        paths,
        tuple(classes),
        np.array([number[name] for name in names], np.int32)[labels.indices.to_numpy()],
        pc.index_in(columns["split"], pa.array(SPLITS, pa.large_string())).to_numpy().astype(np.int8),
        columns["size"].cast(pa.int64()).to_numpy(),
        pack_digests(columns["digest"].to_numpy(zero_copy_only=False).tolist()),
    )
    return Manifest(files, images)


def _row_problems(columns: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What can be wrong with a row of a manifest, and n booleans: where it is."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for name in ("path", "class"):
        yield f"a {name} that is too long", pc.greater(pc.binary_length(columns[name]), MAX_CELL)
    outside = pc.match_substring_regex(columns["path"], r"^$|//|/$|(?:^|/)\.\.?(?:/|$)|\x00")
    yield "a path outside its dataset", outside
    yield "no class", pc.equal(columns["class"], "")
    yield "an unknown split", pc.invert(pc.is_in(columns["split"], pa.array(SPLITS, pa.large_string())))
    is_size = pc.match_substring_regex(columns["size"], "^(?:0|[1-9][0-9]{0,17})$")
    yield "a size that is not a number of bytes", pc.invert(is_size)
    yield "an invalid digest", pc.invert(pc.match_substring_regex(columns["digest"], "^[0-9a-f]{40}$"))


def _check_order(paths: Paths) -> None:
    """Raises `UserError` for paths that are not sorted and unique. Bytes that are not UTF-8 are sorted otherwise than
    as they are written: `\\xe9`."""
    import pyarrow.compute as pc

    array = paths.array
    is_sorted = pc.all(pc.less(array[:-1], array[1:]), min_count=0).as_py()
    if is_sorted or (pc.any(pc.match_substring(array, r"\x")).as_py() and len(array.unique()) == len(array)):
        return
    raise UserError("The manifest was not written by the runner: its paths are not sorted and unique.")


@dataclass(frozen=True, eq=False)
class ScannedImages:
    """The images of an experiment before they are split. Several splits of the same images need one scan."""

    listing: Listing
    """Those that can be decoded."""
    digests: np.ndarray
    """n × 20 bytes of content digests, uint8."""
    rejected: tuple[RejectedFile, ...]
    gray: Mapping[str, GrayImages]
    """Images with gray values of a type without a depth, by type."""
    near: NearDuplicates | None = None
    """If data.near_duplicates asks for them."""

    def split(self, experiment: Experiment) -> Manifest:
        """The images as an experiment splits them; it has the same `data`. Raises `UserError` for classes that are too
        small, and groups that are in two given splits."""
        listing, data = self.listing, experiment.data
        groups, group_remark = _groups(listing, experiment.split)
        similar = self.near.clusters if self.near and data.near_duplicates == "group" else None
        columns = SplitInput(
            listing.paths, listing.classes, listing.labels, self.digests, listing.splits, groups, similar
        )
        leaks = tuple(leak_remarks(columns, data.leaks))
        splits = assign_splits(columns, experiment.split, experiment.seed.split, experiment.seed.val)
        entries = Images(
            listing.paths, listing.classes, listing.labels, splits, listing.stamps[:, 0], self.digests
        )
        is_used = splits != NO_SPLIT
        if not is_used.all():
            entries = entries.take(is_used)
        depth = resolve_depth(self.gray) if data.depth == "auto" else data.depth
        remarks = (
            *listing.remarks,
            *leaks,
            *image_remarks(columns),
            *group_remark,
            *split_remarks(columns, experiment.split, splits),
            *(near_duplicate_remarks(columns, self.near, splits) if self.near else ()),
            *depth_remarks(self.gray, data.depth, depth),
        )
        fold = SPLITS[fold_split(columns, experiment.split)] if experiment.split.folds is not None else ""
        unused = len(splits) - len(entries)
        return Manifest(listing.files, entries, self.rejected, unused, depth, listing.layout, remarks, fold)


def build_manifest(experiment: Experiment, terminal: Terminal) -> Manifest:
    """List, scan and split an experiment's images.

    Raises `UserError` for missing data, for unreadable files (unless `data.unreadable=skip`) and for classes
    with too few images.
    """
    return scan_dataset(experiment, terminal).split(experiment)


def scan_dataset(experiment: Experiment, terminal: Terminal) -> ScannedImages:
    """List and scan an experiment's images. Raises `UserError` as `build_manifest`."""
    cache, data = cache_folder(experiment.cache), experiment.data
    listing = list_dataset(data, cache, terminal, experiment.split.group)
    verdicts = scan_images(listing, cache, terminal)
    rejected, digests = _rejected(listing, verdicts), verdicts.digests
    if rejected:
        if data.unreadable == "stop":
            _refuse(rejected, listing)
        readable = np.ones(len(listing.paths), bool)
        readable[list(verdicts.errors)] = False
        listing, digests = listing.take(readable), digests[readable]
    _check_classes(listing)
    near = None
    if data.near_duplicates != "off":
        near = find_near_duplicates(listing.files, listing.paths, digests, cache, terminal)
    return ScannedImages(listing, digests, rejected, gray_images(verdicts.gray.values()), near)


def _groups(listing: Listing, split: SplitConfig) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The group of each image, and a remark on them. The listing has those that split.group finds in a table."""
    if split.group is None or listing.groups is not None:
        return listing.groups, ()
    groups, remark = path_groups(listing.paths, split.group)
    return groups, (remark,)


def _rejected(listing: Listing, verdicts: Verdicts) -> tuple[RejectedFile, ...]:
    return tuple(
        RejectedFile(
            listing.paths[index],
            listing.classes[listing.labels[index]],
            int(listing.stamps[index, 0]),
            verdicts.errors[index],
        )
        for index in sorted(verdicts.errors)
    )


def _refuse(rejected: Sequence[RejectedFile], listing: Listing) -> NoReturn:
    reasons = [f"{printable(listing.files.shown(file.path))} {file.error}" for file in rejected[:5]]
    more = f" and {len(rejected) - 5:,} more" if len(rejected) > 5 else ""
    raise UserError(
        f"{len(rejected):,} of {len(listing.paths):,} files cannot be used: {'; '.join(reasons)}{more};"
        " repair or remove them, or set data.unreadable=skip to leave them out."
    )


def _check_classes(listing: Listing) -> None:
    """Raises `UserError` for classes without images. The layouts refuse empty folders: here, no image could be read."""
    counts = np.bincount(listing.labels, minlength=len(listing.classes))
    if empty := [name for name, count in zip(listing.classes, counts, strict=True) if not count]:
        plural = len(empty) > 1
        raise UserError(
            f"No image of the class{'es' * plural} {named(empty)} can be read, and data.unreadable=skip leaves all of"
            f" them out; repair some, or remove {'these classes' if plural else 'the class'}."
        )
