"""Targets with a bug, to test the engine: one case in five goes wrong."""

from __future__ import annotations

import os
import signal
import time
import warnings
from random import Random

from fuzz.target import MisreadError, Target
from runner.utils.errors import UserError


class Planted(Target):
    """Every case is refused; one in five calls `bad` first."""

    def make(self, random: Random) -> bytes:
        return random.randbytes(4)

    def read(self, content: bytes) -> None:
        if content[0] % 5 == 0:
            self.bad()
        raise UserError("This is not right; give another file.")

    def bad(self) -> None:
        """The bug; none here."""


class Fault(Planted):
    """Raises an exception that is not a `UserError`."""

    def bad(self) -> None:
        raise ZeroDivisionError("planted")


class Hang(Planted):
    """Does not end in time."""

    def bad(self) -> None:
        time.sleep(60)


class Crash(Planted):
    """Crashes the process."""

    def bad(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Exit(Planted):
    """Exits."""

    def bad(self) -> None:
        raise SystemExit(0)


class Mistake(Planted):
    """Accepts a wrong file."""

    def bad(self) -> None:
        raise MisreadError("planted")


class Swell(Planted):
    """Uses more memory than allowed."""

    def bad(self) -> None:
        bytearray(b"\1") * (2400 * 2**20)  # far more, because pages of libraries may be swapped out meanwhile


class Talk(Planted):
    """Refuses with more than one line."""

    def bad(self) -> None:
        raise UserError("One line,\nand another.")


class Warn(Planted):
    """Warns of an invalid number."""

    def bad(self) -> None:
        warnings.warn("invalid value encountered in cast", RuntimeWarning, stacklevel=1)


PLANTED: dict[str, type[Target]] = {
    f"planted {each.__name__.lower()}": each
    for each in (Planted, Fault, Hang, Crash, Exit, Mistake, Swell, Talk, Warn)
}
