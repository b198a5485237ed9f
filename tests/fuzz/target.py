"""What a format brings along: how its files are damaged, and how the runner reads them."""

from __future__ import annotations

from pathlib import Path
from random import Random


class MisreadError(Exception):
    """The runner read something that it should have refused, or read it as something else."""


class Target:
    """A format. Made once in a process, within a folder of its own; then many cases go through it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, random: Random) -> bytes:
        """A damaged file: the same for the same state of `random`."""
        raise NotImplementedError

    def read(self, content: bytes) -> None:
        """Let the runner read a file.

        Raises `UserError` where it is refused, `MisreadError` where it should have been.
        """
        raise NotImplementedError


def check(holds: bool, what: str) -> None:
    """Raises `MisreadError` where something does not hold of what was read."""
    if not holds:
        raise MisreadError(what)
