"""The phases of a training, as its output shows them, and moments in them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

PHASES = ("set-up", "features", "training", "test", "end")
TRAINING = PHASES.index("training")
"""The first phase at whose beginning an epoch has ended."""
POLL_INTERVAL = 0.02
EPOCHS = 12
"""Of the trainings in which a host fails in a given phase."""
_BEGINS = (
    re.compile(""),
    re.compile(r" device  "),
    re.compile(r"^(\[\S+\] )? +1  ", re.MULTILINE),
    re.compile(rf"^(\[\S+\] )? +{EPOCHS}  ", re.MULTILINE),
    re.compile(r"Result$", re.MULTILINE),
)
"""What the output has when a phase begins. Some launches name their host first in each line."""


@dataclass(frozen=True)
class Moment:
    """A time in a phase.

    Args:
        phase: Index of the phase.
        seconds: After its beginning.
    """

    phase: int
    seconds: float

    def wait(self, text: Callable[[], str], running: Callable[[], bool]) -> bool:
        """Wait for it; whether the training still runs.

        Args:
            text: What it has printed so far.
            running: Whether it runs.
        """
        while not _BEGINS[self.phase].search(text()):
            if not running():
                return False
            time.sleep(POLL_INTERVAL)
        time.sleep(self.seconds)
        return running()


@dataclass(frozen=True)
class Timeline:
    """How many seconds each phase of an undisturbed training took."""

    lengths: Sequence[float]

    def moment(self, number: int, choice: random.Random) -> Moment:
        """A random moment; consecutive numbers are in different phases."""
        phase = number % len(PHASES)
        return Moment(phase, choice.uniform(0, self.lengths[phase]))

    def __str__(self) -> str:
        return ", ".join(f"{name} {length:.1f} s" for name, length in zip(PHASES, self.lengths, strict=True))


def record_timeline(text: Callable[[], str], running: Callable[[], bool]) -> Timeline:
    """Watch a training from its start to its end. Raises RuntimeError if it leaves phases out."""
    begins = [time.monotonic()]
    going = True
    while going:
        going = running()
        printed = text()
        while len(begins) < len(PHASES) and _BEGINS[len(begins)].search(printed):
            begins.append(time.monotonic())
        time.sleep(POLL_INTERVAL)
    if len(begins) < len(PHASES):
        raise RuntimeError(f"the undisturbed training did not come to an end: {text()[-2000:]}")
    return Timeline([end - start for start, end in zip(begins, [*begins[1:], time.monotonic()], strict=True)])
