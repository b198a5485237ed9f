"""The file of an exported run: a zip archive with `run.json`, which describes the runs, and their files.

A file that several runs have, as frozen weights, is in the archive once. Does not import MLflow.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import stat
import zipfile
from dataclasses import asdict, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import AfterValidator, ConfigDict
from pydantic.dataclasses import dataclass

from runner.utils.text import one_line, valid_unicode

FORMAT = "vgg-runner run"
VERSION = 1
"""Of the format; a reader refuses newer ones."""
DESCRIPTION = "run.json"
STORED = frozenset({".safetensors", ".png", ".jpg", ".zip", ".gz", ".npz", ".onnx"})
"""Files that compression makes hardly smaller."""
BLOCK = 1 << 20
CONFIG = ConfigDict(allow_inf_nan=True)
Whole = Annotated[int, Ge(-(1 << 63)), Le((1 << 63) - 1)]
"""A number that a database takes."""
Point = tuple[Whole, Whole, float]
"""Step, time in ms since 1970, and value of a metric."""


def _inside(path: str) -> str:
    """A relative path without `..`, as it is. Raises ValueError for any other."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path:
        raise ValueError(f"{path!r} is no path inside a folder")
    return path


Size = Annotated[int, Ge(0)]
InsidePath = Annotated[str, AfterValidator(_inside)]


@dataclass(frozen=True, config=CONFIG)
class ArchivedFile:
    """A file of a run or model.

    Args:
        path: Its path there.
        entry: The name of its content in the archive.
        bytes: Its size.
        sha256: Of its content, in hexadecimal.
    """

    path: InsidePath
    entry: InsidePath
    bytes: Size
    sha256: str


@dataclass(frozen=True, config=CONFIG)
class ArchivedInput:
    """A data set of a run, as MLflow stores it."""

    name: str
    digest: str
    source_type: str
    source: str
    schema: str = ""
    profile: str = ""
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, config=CONFIG)
class ArchivedModel:
    """The logged model of a run.

    Args:
        metrics: By name.
        step: The epoch whose weights it has.
        manifest: Digest of the images and their split.
        registered: The name of its registered model; empty if it is only logged with its run.
        score: The metric by which a champion is chosen; empty if it is not registered.
        files: Its files.
    """

    metrics: dict[str, float]
    step: Whole
    manifest: str
    registered: str
    score: str
    files: tuple[ArchivedFile, ...]


@dataclass(frozen=True, config=CONFIG)
class ArchivedRun:
    """A run.

    Args:
        id: Its id where it was trained.
        name: Its name.
        experiment: The name of its experiment.
        status: FINISHED, FAILED or KILLED.
        start: When it started, in ms since 1970.
        end: When it ended, likewise.
        parent: The id of the run that it is part of; empty if of none.
        params: By name.
        tags: By name.
        metrics: All points of each metric.
        inputs: Its data sets.
        files: Its artifacts.
        model: Its logged model.
    """

    id: str
    name: str
    experiment: str
    status: str
    start: Whole
    end: Whole
    parent: str
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, tuple[Point, ...]]
    inputs: tuple[ArchivedInput, ...]
    files: tuple[ArchivedFile, ...]
    model: ArchivedModel | None = None

    @property
    def all_files(self) -> tuple[ArchivedFile, ...]:
        """Its artifacts, and the files of its model."""
        return self.files + (self.model.files if self.model else ())

    @property
    def label(self) -> str:
        """Id and name for messages."""
        return f"{self.id[:8]} ({one_line(self.name, 100)})"


@dataclass(frozen=True, config=CONFIG)
class RunArchive:
    """What an archive holds: a run, and after it the runs that are part of it."""

    runs: tuple[ArchivedRun, ...]

    @property
    def entries(self) -> dict[str, ArchivedFile]:
        """The content of all files, by its name in the archive."""
        return {file.entry: file for run in self.runs for file in run.all_files}

    @property
    def bytes(self) -> int:
        """The size of that content on disk."""
        return sum(file.bytes for file in self.entries.values())


class ArchiveWriter:
    """Writes an archive.

    Args:
        archive: Open for writing.
    """

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self._entries: dict[str, str] = {}
        """Name of the content by its digest."""

    def add(self, source: Path, path: str, folder: str) -> ArchivedFile:
        """Add a file on disk as `path` of `folder`; content that is there already is not added again."""
        with source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        entry = self._entries.get(sha256)
        if entry is None:
            entry = self._entries[sha256] = valid_unicode(f"{folder}/{path}")
            method = zipfile.ZIP_STORED if source.suffix in STORED else zipfile.ZIP_DEFLATED
            with source.open("rb") as file, self._open(entry, method) as target:
                shutil.copyfileobj(file, target, BLOCK)
        return ArchivedFile(path, entry, source.stat().st_size, sha256)

    def finish(self, archive: RunArchive) -> None:
        """Add the description; the archive is complete then."""
        content = {"format": FORMAT, "version": VERSION, **asdict(archive)}
        for run in content["runs"]:  # JSON has no NaN and no infinity
            for name, points in run["metrics"].items():
                run["metrics"][name] = [(step, time, _plain(value)) for step, time, value in points]
            if run["model"]:
                run["model"]["metrics"] = {
                    name: _plain(value) for name, value in run["model"]["metrics"].items()
                }
        with self._open(DESCRIPTION, zipfile.ZIP_DEFLATED) as target:
            target.write(json.dumps(content, allow_nan=False).encode())

    def _open(self, entry: str, method: int) -> Any:
        info = zipfile.ZipInfo(entry)  # of a fixed date: equal runs make equal archives
        info.compress_type = method
        info.external_attr = (stat.S_IFREG | 0o644) << 16
        return self._archive.open(info, "w", force_zip64=True)


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
