"""The settings of the images and their split; a part of `runner.config.schema`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from runner.config.choices import DATASETS
from runner.config.fields import AtLeastTwo, Depth, NonNegativeInt, PositiveFloat, setting
from runner.config.protocols import check_protocol

COLUMNS = ("path", "image", "label", "split", "group")
"""What columns of a table or a saved dataset can be."""


@dataclass(frozen=True)
class DataConfig:
    """The images."""

    kind: str = setting("caltech101", choices=DATASETS)
    """The dataset."""
    root: str | None = setting(None, changes_results=False)
    """Where the images are. folder: a folder with a folder per class, also within train, val and test folders; or an
    archive, WebDataset shards, a saved Hugging Face dataset (data.md); caltech101: it holds caltech101/, as in
    torchvision. Resumed runs compare the images by content, wherever they are."""
    test: str | None = setting(None, changes_results=False)
    """Where the images of the test split are, if not in data.root."""
    table: str | None = setting(None, changes_results=False)
    """A table of labels (.csv, .tsv or .parquet): path, label and, if it has them, split and group of each image. Paths
    are relative to data.root, or to the table's folder."""
    columns: dict[str, str] = setting(dict, changes_results=False)
    """Names of columns where they differ, as {path: file, label: species}: path, label, split and group of data.table,
    image and label of a saved Hugging Face dataset."""
    nested: Literal["top", "path"] = "top"
    """Class of an image in nested folders, as a/b/photo.jpg: top: a; path: a/b."""
    leaks: Literal["stop", "report"] = setting("stop", changes_results=False)
    """What to do if the same file is in two given splits: stop, or report it."""
    near_duplicates: Literal["off", "report", "group"] = "off"
    """Images that look nearly alike, by perceptual hash. report: count those that are in different splits; group: keep
    them in one split."""
    download: bool = setting(False, changes_results=False)
    """Download the dataset into data.root if it is not there (Caltech-101: 131 MiB)."""
    background: bool = False
    """Use Caltech-101's BACKGROUND_Google folder as a class."""
    follow_links: bool = False
    """Follow symbolic links inside data.root. data.root itself may always be a link."""
    unreadable: Literal["stop", "skip"] = "stop"
    """What to do with a file that cannot be decoded: stop, or skip it. Both name the file."""
    depth: Literal["auto"] | Depth = setting("auto", unit="bits")
    """Bits of gray values in images of more than 8 bits: white is 2^depth - 1. auto: by type and range (data.md)."""
    workers: Literal["auto"] | NonNegativeInt = setting("auto", changes_results=False)
    """Processes that decode images, per rank. auto: the rank's share of the CPU cores, 0 for few images."""

    def __post_init__(self) -> None:
        kind = DATASETS.find(self.kind)
        if unknown := sorted(self.columns.keys() - COLUMNS):
            raise ValueError(
                f"data.columns renames {', '.join(COLUMNS)}, not {', '.join(unknown)}; write it as {{path: file}} for a"
                " column that is called file"
            )
        for name in ("root", "test", "table", "download", "background"):
            if getattr(self, name) and name not in kind.uses:
                users = [choice.name for choice in DATASETS.choices.values() if name in choice.uses]
                raise ValueError(
                    f"data.{name} is not used by data.kind={self.kind}; remove it, or set data.kind to"
                    f" {' or '.join(users)}"
                )


@dataclass(frozen=True)
class SplitConfig:
    """Training, validation and test images: stratified, duplicates kept together. Given splits are kept."""

    by: Literal["fraction", "count"] = "fraction"
    """fraction: sizes are fractions of each class; count: sizes are images per class."""
    train: PositiveFloat = 0.5
    """Size of the training split."""
    val: PositiveFloat | Literal["rest"] = 0.25
    """Size of the validation split. rest: with split.by=count, the images that are in neither of the other splits; a
    class may have none."""
    test: PositiveFloat = 0.25
    """Size of the test split. With split.by=count it is a maximum per class, and remaining images are not used."""
    group: str | None = None
    """Images of a group stay in one split. The name of a column of data.table, or a regular expression that is searched
    in each path: its first group in parentheses, else all that it matches, names the group."""
    protocol: Literal["50-25-25", "caltech101-30"] | None = None
    """A published way to split, which sets by, train, val and test. 50-25-25: fractions of each class; caltech101-30:
    30 training images a class, at most 50 for the test, the rest for validation, and no train.refit. A class that is
    too small for it is refused."""
    folds: AtLeastTwo | None = None
    """Cross-validation with this number of folds: a child run for each, evaluated on its own fold."""
    fold: NonNegativeInt | None = None
    """With split.folds: this fold alone, from 0, in a run of its own. null: all folds."""
    fold_as: Literal["test", "val"] = "test"
    """What the fold is. test: the test split; val: the validation split, beside a test split that is the same for all
    folds. If the data say which images are for test, it is val."""

    @property
    def is_cross_validation(self) -> bool:
        """Whether all folds are wanted: a run of one split cannot have them."""
        return self.folds is not None and self.fold is None

    @property
    def sizes(self) -> tuple[float, float, float]:
        """Those of training, validation and test; of validation 0 if it is the rest."""
        return self.train, 0.0 if self.val == "rest" else self.val, self.test

    def __post_init__(self) -> None:
        check_protocol(self.protocol, "split", self)
        if self.protocol is not None and self.folds is not None:
            self._check_folds_of_protocol()
        if self.val == "rest" and self.by != "count":
            raise ValueError("split.val=rest needs split.by=count")
        sizes = self.sizes
        if self.by == "fraction" and abs(sum(sizes) - 1) > 1e-6:
            raise ValueError(
                f"split.train, split.val and split.test must add up to 1, not {sum(sizes):g};"
                " for a number of images per class set split.by=count"
            )
        if self.by == "count" and any(size != int(size) for size in sizes):
            raise ValueError(
                "split.train, split.val and split.test must be whole numbers with split.by=count"
            )
        if self.fold is not None and self.folds is None:
            raise ValueError("split.fold needs split.folds, the number of folds")
        if self.fold is not None and self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"split.fold must be less than split.folds ({self.folds}); it is {self.fold}")
        if self.folds is not None and self.by == "count":
            raise ValueError("split.folds divides all images; it does not go with split.by=count")
        if self.group is not None:
            try:
                re.compile(self.group)
            except re.error as error:
                raise ValueError(
                    f"split.group is not a regular expression ({error}): {self.group!r}"
                ) from None

    def _check_folds_of_protocol(self) -> None:
        if self.by == "count":
            raise ValueError(
                f"split.protocol={self.protocol} draws a number of images of each class, and split.folds divides all"
                " images; for several splits of the protocol, leave out split.folds and use --repeat 5 --repeat-over"
                " split"
            )
        if self.fold_as == "test":
            raise ValueError(
                f"split.protocol={self.protocol} decides which images are for the test, and split.folds would make each"
                " fold the test split; set split.fold_as=val, or leave out one of them"
            )
