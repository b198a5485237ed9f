"""WebDataset shards: tar files in which `name.jpg` and `name.cls` (or `name.json`) are an image and its class."""

from __future__ import annotations

import re
import tarfile
from array import array
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np

from runner.data.archives.files import ArchiveFiles
from runner.data.archives.index import Archive, Members, cached_path, file_stamp, read_index, write_index
from runner.data.archives.listing import is_tar
from runner.data.archives.members import MemberList, check_unique
from runner.data.archives.shard_samples import find_samples, read_label
from runner.data.archives.tar_members import list_tar
from runner.data.columns import Paths
from runner.data.images import SPLITS
from runner.data.layouts.layout import SPLIT_FOLDERS
from runner.data.listing import FileList, Listing
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.image_paths import SUFFIXES
from runner.utils.text import counted, named

CLASS_FILES = ("classes.txt", "classnames.txt")
"""Beside the shards: the name of class 0, 1, … in each line."""
TAR = (".tar",)
PEEKED = 100
"""Members that are looked at."""
LARGE = 1 << 28
"""Bytes of shards whose index takes long enough to say so."""


def is_shard(path: Path) -> bool:
    """Whether a tar file has a .cls member among the first: then it need not be listed to know that it is a shard."""
    if not is_tar(path):
        return False
    with suppress(OSError, tarfile.TarError, ValueError), tarfile.open(path, "r:") as tar:
        return any(info.name.lower().endswith(".cls") for info in islice(tar, PEEKED))
    return False


def shard_names(found: FileList) -> list[str]:
    """The tar files of a folder without images, or the name of a tar file with samples; nothing if there are no shards.

    A tar file is a shard if it has .cls members, or .json members beside images in no folder.
    """
    if found.files.root.is_dir():
        if not _any_ends(found.paths, TAR) or _any_ends(found.paths, SUFFIXES):
            return []
        return [path for path in found.paths if is_tar(Path(path))]
    if not is_tar(found.files.root):
        return []
    labels = (".cls",) if len(found.folders) > 1 else (".cls", ".json")
    return [found.files.root.name] if _any_ends(found.paths, labels) else []


def _any_ends(paths: Paths, suffixes: Iterable[str]) -> bool:
    import pyarrow.compute as pc

    choices = "|".join(map(re.escape, suffixes))
    return bool(pc.any(pc.match_substring_regex(paths.array, f"(?i)(?:{choices})$")).as_py())


def list_shards(root: Path, names: Sequence[str], cache: Path, terminal: Terminal) -> Listing:
    """The images of shards, as `shard.tar/name.jpg`, with their classes, and splits if the shards' names say them.

    Args:
        root: A folder of shards, or one shard.
        names: The shards' paths in that folder; for one shard its name.
        cache: Keeps the index.

    Raises `UserError` if a shard cannot be read, for samples without one image and one class, and for labels that are
    lists.
    """
    base = root if root.is_dir() else root.parent
    archives = [_archive(base / name) for name in names]
    file = cached_path(cache, root, [(one.path, one.stamp) for one in archives], ".shards")
    index = read_index(file)
    if index is None:
        total = sum(archive.stamp[0] for archive in archives)
        if total >= LARGE:
            terminal.line(f"Reading the index of {counted(len(archives), 'shard')} in {root} …")
        index = write_index(file, _index(root, base, names, archives))
    members = index.members
    classes, labels = _classes(base, members)
    splits = _splits(root, names)
    return Listing(
        ArchiveFiles(root, base, file),
        members.paths,
        members.stamps(),
        classes,
        labels,
        None if splits is None else splits[members.columns["archive"]],
        layout=f"{counted(len(names), 'WebDataset shard')}",
    )


def _archive(path: Path) -> Archive:
    try:
        stamp = file_stamp(path)
        with path.open("rb"):
            pass
    except OSError as error:
        raise UserError(
            f"The shard {path} cannot be read ({error.strerror}); check its mode and disk."
        ) from None
    return Archive(str(path.absolute()), stamp, stamp)


def _index(root: Path, base: Path, names: Sequence[str], archives: Sequence[Archive]) -> Members:
    """The images of all shards, sorted by path; their `name` is their class."""
    classes: dict[str, int] = {}
    paths: list[str] = []
    columns: list[dict[str, np.ndarray]] = []
    for number, name in enumerate(names):
        members = list_tar(base / name, base / name)
        images, labels = _label(base / name, members, classes)
        if file_stamp(base / name) != archives[number].stamp:
            raise UserError(f"The shard {base / name} has changed while it was read; start again.")
        paths += (f"{name}/{members.paths[row]}" for row in images)
        chosen = {column: values[images] for column, values in members.columns().items()}
        chosen.update(archive=np.full(len(images), number, np.int32), name=labels)
        columns.append(chosen)
    if not paths:
        raise UserError(
            f"The tar files of {root} hold no WebDataset samples, as name.jpg with name.cls or name.json; see"
            " docs/data.md for what is accepted."
        )
    order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
    check_unique(root, paths := [paths[row] for row in order])
    joined = {column: np.concatenate([part[column] for part in columns])[order] for column in columns[0]}
    return Members(tuple(archives), Paths.of(paths), tuple(classes), joined)


def _label(shard: Path, members: MemberList, classes: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of a shard's images, and the number of each one's class. New classes are added to `classes`."""
    samples = sorted(find_samples(shard, members.paths), key=lambda sample: members.place(sample.label))
    labels = array("i")
    with shard.open("rb") as file:
        for sample in samples:
            text = read_label(file, shard, members, sample)
            labels.append(classes.setdefault(text, len(classes)))
    rows = np.fromiter((sample.image for sample in samples), np.int64, len(samples))
    return rows, np.array(labels, np.int32)


def _classes(base: Path, members: Members) -> tuple[tuple[str, ...], np.ndarray]:
    """The classes, sorted, and each image's index: by name, or by the names that a file gives to whole numbers."""
    found = list(members.names)
    if all(re.fullmatch("0|[1-9][0-9]{0,8}", name) for name in found):
        given = next((base / name for name in CLASS_FILES if (base / name).is_file()), None)
        if given is not None:
            found = _named_classes(given, [int(name) for name in found])
    classes = sorted(found)
    place = {name: index for index, name in enumerate(classes)}
    index = np.array([place[name] for name in found], np.int32)
    return tuple(classes), index[members.columns["name"]]


def _named_classes(path: Path, numbers: Sequence[int]) -> list[str]:
    """The names of these classes by a file with one in each line.

    Raises `UserError` unless it gives each of them a name of its own.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The class names in {path} cannot be read ({error}); write it as UTF-8.") from None
    if max(numbers) >= len(lines) or not all(lines[number] for number in numbers):
        raise UserError(
            f"{path} has {counted(len(lines), 'line')} and gives no name to class"
            f" {next(number for number in sorted(numbers) if number >= len(lines) or not lines[number])} of the shards;"
            " complete or remove it."
        )
    names = [lines[number] for number in numbers]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"{path} gives the same name to several classes ({named(doubled)}); make them different."
        )
    return names


def _splits(root: Path, names: Sequence[str]) -> np.ndarray | None:
    """The split of each shard, an index into `SPLITS`, int8; None if no name says one."""
    found = [_split(root, name) for name in names]
    if not any(found):
        return None
    if open_ := [name for name, split in zip(names, found, strict=True) if split is None]:
        raise UserError(
            f"Some shards in {root} are named after their split and others are not ({named(open_)}); give all of them"
            " names as train-000.tar, val-000.tar or test-000.tar."
        )
    return np.array([SPLITS.index(split) for split in found if split], np.int8)


def _split(root: Path, name: str) -> str | None:
    """The split that the words in a shard's path say. Raises `UserError` if they say two."""
    words = re.split("[^a-z]+", name.lower())
    splits = {SPLIT_FOLDERS[word] for word in words if word in SPLIT_FOLDERS}
    if len(splits) > 1:
        raise UserError(
            f"The name of the shard {root / name} says {' and '.join(sorted(splits))}; rename it."
        )
    return next(iter(splits), None)
