"""Targets with a fault of their own, by which the engine is tried: one case in five goes wrong."""

from __future__ import annotations

import os
import signal
import time
import warnings
from random import Random

from fuzz.target import MisreadError, Target
from runner.utils.errors import UserError


class Planted(Target):
    """Harmless: every case is refused but the fifth, which does what `bad` does."""

    def make(self, random: Random) -> bytes:
        return random.randbytes(4)

    def read(self, content: bytes) -> None:
        if content[0] % 5 == 0:
            self.bad()
        raise UserError("This is not right; give another file.")

    def bad(self) -> None:
        """Nothing."""


class Fault(Planted):
    """Raises what no reader should."""

    def bad(self) -> None:
        raise ZeroDivisionError("planted")


class Hang(Planted):
    """Does not end."""

    def bad(self) -> None:
        time.sleep(60)


class Crash(Planted):
    """Takes its process with it."""

    def bad(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class Exit(Planted):
    """Leaves."""

    def bad(self) -> None:
        raise SystemExit(0)


class Mistake(Planted):
    """Reads what is wrong."""

    def bad(self) -> None:
        raise MisreadError("planted")


class Swell(Planted):
    """Takes more memory than it may."""

    def bad(self) -> None:
        bytearray(b"\1") * (2400 * 2**20)  # far more: meanwhile pages of libraries may leave memory


class Talk(Planted):
    """Says more than a sentence."""

    def bad(self) -> None:
        raise UserError("One line,\nand another.")


class Warn(Planted):
    """Computes with what is no number."""

    def bad(self) -> None:
        warnings.warn("invalid value encountered in cast", RuntimeWarning, stacklevel=1)


PLANTED: dict[str, type[Target]] = {
    f"planted {each.__name__.lower()}": each
    for each in (Planted, Fault, Hang, Crash, Exit, Mistake, Swell, Talk, Warn)
}
