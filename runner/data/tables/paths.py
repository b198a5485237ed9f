"""Finds the images that a table names: in the files of data.root, or beside the table."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from runner.data.columns import Paths
from runner.data.files import FolderFiles
from runner.data.listing import STAMP, FileList
from runner.data.tables.reader import Table
from runner.utils.errors import UserError
from runner.utils.image_paths import SUFFIXES
from runner.utils.text import counted, named, printable

if TYPE_CHECKING:
    import pyarrow as pa

Names: TypeAlias = "pa.LargeBinaryArray"
IMAGE = f"(?i)(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})$"
ADDRESS = "^(?i:[a-z][a-z0-9+.-]*://|data:)"
WINDOWS = r"^(?:[A-Za-z]:[\\/]|\\\\)"
ODD = r"//|(?:^|/)\.\.?(?:/|$)|/$"
"""In a path that is not in its shortest form."""


@dataclass(frozen=True, eq=False)
class TableImages:
    """The n images that a table names, sorted by path."""

    rows: np.ndarray
    """The row of each image."""
    paths: Paths
    """Relative to data.root or the table's folder, or absolute if they are not below it."""
    stamps: np.ndarray
    """n × 4, as in `FileList`."""
    around: str
    """The folder, with a slash, that the table's paths leave out; mostly empty."""
    remarks: tuple[str, ...]


def find_images(table: Table, found: FileList | None) -> TableImages:
    """Find the images in the column `path` of a table.

    A name may lack its suffix (.jpg). If data.root holds the images within one more folder, paths may leave it out.

    Args:
        table: The table.
        found: The files of data.root; None: the images are beside the table.

    Raises `UserError`, with the lines, for images that are not there or named twice, for addresses (http://…), and for
    paths that lead outside.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names, is_absolute = _normalized(table, found)
    known, stamps = Paths.of(()), np.empty((0, STAMP), np.int64)
    if found is not None:
        known, stamps = found.paths, found.stamps
    elsewhere = is_absolute if found is not None else np.ones(len(names), bool)
    base = _base(table, found)
    if elsewhere.any():
        beside = _files_beside(base, names.filter(pa.array(elsewhere)))
        known = Paths.joined([known, Paths.of(beside)]) if len(known) else Paths.of(beside)
    where = _find(names, known.array)
    around = ""
    relative = where[~is_absolute]
    if found is not None and len(relative) and (relative < 0).all():
        around, where = _find_within(names, known.array, where)
    missing = np.flatnonzero(where < 0)
    if len(missing):
        name = os.fsdecode(names[int(missing[0])].as_py())
        there = "" if name.startswith("/") else f" in {base}"
        table.refuse(where < 0, f"no such file{there}", _advice(name, known, base, found), "path")
    _refuse_doubled(table, where)
    rows = pc.sort_indices(known.array.take(pa.array(where))).to_numpy().astype(np.int64)
    where = where[rows]
    paths = known.take(where)
    return TableImages(
        rows, paths, _stamps(base, paths, where, stamps), around, tuple(_unnamed(known, where, found))
    )


def _base(table: Table, found: FileList | None) -> Path:
    return table.path.parent if found is None else found.files.root


def _normalized(table: Table, found: FileList | None) -> tuple[Names, np.ndarray]:
    """The paths in their shortest form, relative if they are below the base, and whether each is absolute.

    Raises `UserError` for those that cannot be the path of an image.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    names = table.columns["path"]
    base = _base(table, found)
    table.refuse(
        pc.equal(pc.utf8_trim_whitespace(names), ""), "no path", "complete or remove the line", "label"
    )
    table.refuse(
        pc.match_substring_regex(names, ADDRESS),
        "an address, not a file: images are not downloaded while a model trains",
        "fetch them, and name the files",
        "path",
    )
    table.refuse(
        pc.match_substring_regex(names, WINDOWS),
        "a path of Windows",
        "write it relative to data.root, with / between folders",
        "path",
    )
    names = pc.replace_substring_regex(names, r"^(?:\./+)+", "")
    odd = _mask(pc.match_substring_regex(names, ODD))
    if odd.any():
        root = os.path.abspath(base)
        shortest = [_shortest(name.as_py(), root) for name in names.filter(pa.array(odd))]
        names = pc.replace_with_mask(names, pa.array(odd), pa.array(shortest, pa.large_string()))
    names = names.cast(pa.large_binary())
    for root in dict.fromkeys((os.path.abspath(base), os.path.realpath(base))):
        prefix = os.fsencode(root).rstrip(b"/") + b"/"
        inside = pc.starts_with(names, prefix)
        names = pc.if_else(inside, pc.binary_replace_slice(names, 0, len(prefix), b""), names)
    table.refuse(
        pc.match_substring_regex(names, r"^\.\.(?:/|$)"),
        f"outside {base}",
        "set data.root to the folder that holds the images",
        "path",
    )
    absolute = _mask(pc.starts_with(names, b"/"))
    if found is not None and not isinstance(found.files, FolderFiles):
        table.refuse(absolute, f"not in {base}", "write paths as they are in the archive", "path")
    return names, absolute


def _mask(values: Any) -> np.ndarray:
    return np.asarray(values.to_numpy(zero_copy_only=False), bool)


def _shortest(name: str, root: str) -> str:
    """A path without `.`, `..` and double slashes; one that leads out of `root` and in again is absolute."""
    short = posixpath.normpath(name)
    if short.startswith("../"):
        full = posixpath.normpath(posixpath.join(root, short))
        return full if full.startswith(f"{root}/") else short
    return f"/{short.lstrip('/')}" if short.startswith("/") else short


def _files_beside(base: Path, names: Names) -> Iterator[str]:
    """All files in the folders in which these are, in any order."""
    import pyarrow.compute as pc

    parts = pc.split_pattern(names, b"/", max_splits=1, reverse=True)
    nested = pc.match_substring(names, b"/")
    folders = pc.if_else(nested, pc.list_element(parts, 0), b"").unique()
    for folder in map(os.fsdecode, folders.to_pylist()):
        prefix = f"{folder}/" if folder else ""
        try:
            with os.scandir(base / folder) as entries:
                yield from (prefix + entry.name for entry in entries if entry.is_file())
        except (OSError, ValueError):  # it is not there: its images are named as missing
            continue


def _find(names: Names, known: Names) -> np.ndarray:
    """The index of each name among the known ones, -1 if it is not there; a name may be without its suffix."""
    import pyarrow as pa
    import pyarrow.compute as pc

    where = Paths(known).positions(Paths(names))
    missing = np.flatnonzero((where < 0) & ~_mask(pc.match_substring_regex(names, IMAGE)))
    if not len(missing):
        return where
    images = np.flatnonzero(_mask(pc.match_substring_regex(known, IMAGE)))
    stems = pc.replace_substring_regex(known.take(pa.array(images)), IMAGE, "").dictionary_encode()
    first, counts = np.unique(stems.indices.to_numpy(), return_index=True, return_counts=True)[1:]
    places = Paths(stems.dictionary).positions(Paths(names.take(pa.array(missing))))
    unique = (places >= 0) & (counts[places] == 1) if len(counts) else np.zeros(len(places), bool)
    where[missing[unique]] = images[first[places[unique]]]
    return where


def _find_within(names: Names, known: Names, where: np.ndarray) -> tuple[str, np.ndarray]:
    """The folder in which the first missing name is found, and the indices of all in it; as before if there is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = np.flatnonzero(where < 0)
    first = names[int(missing[0])].as_py()
    if len(paths := _ending(known, first)) != 1:
        return "", where
    around = paths[0][: paths[0].rindex(first)]
    within = pc.binary_join_element_wise(
        pa.scalar(around, pa.large_binary()), names.take(pa.array(missing)), pa.scalar(b"", pa.large_binary())
    )
    where = where.copy()
    where[missing] = _find(within, known)
    return os.fsdecode(around), where


def _ending(known: Names, name: bytes) -> list[bytes]:
    """The paths that end with a name, with or without a suffix, in some folder."""
    import pyarrow.compute as pc

    with_name = known.filter(pc.match_substring(known, b"/" + name))
    ending = re.compile(re.escape(b"/" + name) + b"(?:" + IMAGE[4:-1].encode() + b")?", re.IGNORECASE)
    return [path for path in with_name.to_pylist() if ending.fullmatch(path, path.rfind(b"/" + name))]


def _advice(name: str, known: Paths, base: Path, found: FileList | None) -> str:
    """How to mend a name that is missing."""
    if "\\" in name:
        return r"write / between folders, not \\"[:-1]
    if found is not None and any(f"{name}/".startswith(f"{link}/") for link in found.links):
        return "it is behind a link, which is not followed: set data.follow_links=true"
    first, _, rest = name.partition("/")
    if found is not None and first == base.name and known.positions(Paths.of([rest]))[0] >= 0:
        return f"set data.root={base.parent}"
    form = unicodedata.normalize("NFC", name)
    alike = list(_like(known, form))
    for path in alike:
        if unicodedata.normalize("NFC", path) == form:
            kind = next((kind for kind in ("NFD", "NFC") if unicodedata.is_normalized(kind, path)), "mixed")
            return (
                f"the file's name has its accents in another form of Unicode ({kind}): write the table's paths in it,"
                " or rename the files"
            )
    if alike:
        return f"small and capital letters matter: the file is {printable(alike[0])}"
    if found is not None and (ends := _ending(known.array, os.fsencode(name))):
        if len(ends) > 1:
            return f"there are {named([os.fsdecode(path) for path in ends], 3)}: write which"
        return f"there is {printable(os.fsdecode(ends[0]))}: write paths as they are in {base}"
    return "correct the paths, or set data.root to the folder that they are relative to"


def _like(known: Paths, form: str) -> Iterator[str]:
    """The paths that differ only in case and form of Unicode."""
    wanted = form.casefold()
    for path in known:
        if unicodedata.normalize("NFC", path).casefold() == wanted:
            yield path


def _refuse_doubled(table: Table, where: np.ndarray) -> None:
    """Raises `UserError` for images that are named twice."""
    order = np.argsort(where, kind="stable")
    again = np.flatnonzero(where[order][1:] == where[order][:-1])
    if not len(again):
        return
    first, second = (int(order[again[0] + place]) for place in (0, 1))
    places = table.places([first, second])
    labels = [table.columns["label"][row].as_py().strip() for row in (first, second)]
    advice = "remove one"
    if labels[0] != labels[1]:
        shown = " and ".join(map(printable, labels))
        advice = f"the labels are {shown}: an image must have one (multi-label is not supported)"
    more = f" (as {len(again) - 1:,} more)" if len(again) > 1 else ""
    raise UserError(
        f"{table.path}, {places[0]} and {places[1]}: both name the same image,"
        f" {printable(table.columns['path'][second].as_py())}{more}; {advice}."
    )


def _stamps(base: Path, paths: Paths, where: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The stamps of images, of which some are known."""
    stamps = np.empty((len(where), STAMP), np.int64)
    inside = where < len(known)
    stamps[inside] = known[where[inside]]
    outside = np.flatnonzero(~inside)
    for row, path in zip(outside, paths.take(outside), strict=True):
        try:
            status = os.stat(os.path.join(base, path))
        except OSError as error:
            raise UserError(
                f"The image {base / path} cannot be read ({error.strerror}); check its mode and disk."
            ) from None
        stamps[row] = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    return stamps


def _unnamed(known: Paths, where: np.ndarray, found: FileList | None) -> Iterator[str]:
    """Images of data.root that the table does not name."""
    import pyarrow.compute as pc

    if found is None:
        return
    images = _mask(pc.match_substring_regex(found.paths.array, IMAGE))
    images[where[where < len(images)]] = False
    if images.any():
        rest = found.paths.take(images)
        yield f"not used: {counted(len(rest), 'image')} that the table does not name ({named(rest)})"
