"""The verdict on a case: what the runner may do with a damaged file, and what it took to do it."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz.target import MisreadError, Target
from runner.utils.errors import UserError

LONGEST = 2000
"""Characters that a sentence to a user must stay below."""
MEMORY = 2**30
"""Bytes that a case may take."""
LOUD = ("DecompressionBombWarning", "RuntimeWarning", "ComplexWarning", "VisibleDeprecationWarning")
"""Warnings of Pillow and numpy that speak of the values, and so must not be passed over."""
STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Verdict:
    """What came of a case: accepted, refused, traceback or wrong."""

    kind: str
    text: str = ""
    seconds: float = 0.0


def judge(target: Target, name: str, case: int) -> Verdict:
    """Make a case, feed it to the runner, and judge what happens."""
    content = target.make(Random(f"{name}:{case}"))
    before, began = _resident(), time.monotonic()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", append=True)  # behind what the runner itself leaves unsaid
        kind, text = _outcome(target, content)
    seconds, taken = time.monotonic() - began, _peak() - before
    loud = [each for each in said if each.category.__name__ in LOUD]
    if kind in ("accepted", "refused") and loud:
        kind, text = "wrong", f"warns: {loud[0].category.__name__}: {loud[0].message} ({loud[0].filename})"
    if kind != "traceback" and taken > MEMORY:
        kind, text = "wrong", f"took {taken / 2**20:,.0f} MiB of memory"
    return Verdict(kind, text, seconds)


def _outcome(target: Target, content: bytes) -> tuple[str, str]:
    try:
        target.read(content)
    except UserError as error:
        text = str(error)
        for fault in ("\n", "\r", "Traceback"):
            if fault in text:
                return "wrong", f"the sentence holds {fault!r}: {text[:LONGEST]}"
        if not text.strip() or len(text) >= LONGEST:
            return "wrong", f"the sentence has {len(text):,} characters: {text[:300]}"
        return "refused", text
    except MisreadError as error:
        return "wrong", str(error)[:LONGEST]
    except BaseException:  # an exit too is no answer to a damaged file
        return "traceback", traceback.format_exc()[-3 * LONGEST :]
    return "accepted", ""


def _resident() -> int:
    """Bytes in memory now, from which the peak is counted anew."""
    PEAK.write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
