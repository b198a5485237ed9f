"""Where the files of a dataset are read from: a folder, or something that holds files, as an archive."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol


class ImageFiles(Protocol):
    """Reads the files of a dataset by their path in it. It is pickled for loader processes."""

    @property
    def root(self) -> Path:
        """The folder, or the archive: for messages, and for the name of the dataset."""

    def read(self, path: str) -> bytes:
        """The content of a file. Raises OSError; FileNotFoundError if it is not there any more."""

    def shown(self, path: str) -> str:
        """What messages call a file."""


@dataclass(frozen=True)
class FolderFiles:
    """The files below a folder."""

    root: Path

    def read(self, path: str) -> bytes:
        with open(os.path.join(self._folder, path), "rb", buffering=0) as file:
            return file.read()

    def shown(self, path: str) -> str:
        return str(self.root / path)

    @cached_property
    def _folder(self) -> str:
        return str(self.root)
