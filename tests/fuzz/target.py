"""The interface of a format: how its files are damaged, and how the runner reads them."""

from __future__ import annotations

from pathlib import Path
from random import Random


class MisreadError(Exception):
    """The runner accepted something that it should have refused, or read it wrong."""


class Target:
    """A format. One object in its own folder serves all cases of a process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def make(self, random: Random) -> bytes:
        """A damaged file, as a function of the state of `random`."""
        raise NotImplementedError

    def read(self, content: bytes) -> None:
        """Let the runner read a file.

        Raises `UserError` if it refuses the file, `MisreadError` if it should have refused it.
        """
        raise NotImplementedError


def check(holds: bool, what: str) -> None:
    """Raises `MisreadError` if a condition does not hold."""
    if not holds:
        raise MisreadError(what)
