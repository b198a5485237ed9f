"""Runs one case and classifies the result."""

from __future__ import annotations

import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzz.target import MisreadError, Target
from runner.utils.errors import UserError

MAX_LENGTH = 2000
"""Characters of a message."""
MEMORY = 2**30
"""Bytes of memory that a case may use."""
REPORTED_WARNINGS = (
    "DecompressionBombWarning",
    "RuntimeWarning",
    "ComplexWarning",
    "VisibleDeprecationWarning",
)
"""Warnings of Pillow and NumPy about values: they count as problems."""
PROC_STATUS, PROC_CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Verdict:
    """The result of a case: accepted, refused, traceback or wrong."""

    kind: str
    text: str = ""
    seconds: float = 0.0


def run_case(target: Target, name: str, case: int) -> Verdict:
    """Make the file of a case, let the runner read it, and classify the result."""
    content = target.make(Random(f"{name}:{case}"))
    before, began = _resident(), time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", append=True)  # after the filters that the runner sets
        kind, text = _read(target, content)
    seconds, taken = time.monotonic() - began, _peak() - before
    reported = [each for each in caught if each.category.__name__ in REPORTED_WARNINGS]
    if kind in ("accepted", "refused") and reported:
        kind, text = (
            "wrong",
            f"warns: {reported[0].category.__name__}: {reported[0].message} ({reported[0].filename})",
        )
    if kind != "traceback" and taken > MEMORY:
        kind, text = "wrong", f"took {taken / 2**20:,.0f} MiB of memory"
    return Verdict(kind, text, seconds)


def _read(target: Target, content: bytes) -> tuple[str, str]:
    try:
        target.read(content)
    except UserError as error:
        text = str(error)
        for fault in ("\n", "\r", "Traceback"):
            if fault in text:
                return "wrong", f"the sentence holds {fault!r}: {text[:MAX_LENGTH]}"
        if not text.strip() or len(text) >= MAX_LENGTH:
            return "wrong", f"the sentence has {len(text):,} characters: {text[:300]}"
        return "refused", text
    except MisreadError as error:
        return "wrong", str(error)[:MAX_LENGTH]
    except BaseException:  # exiting is not an answer to a damaged file
        return "traceback", traceback.format_exc()[-3 * MAX_LENGTH :]
    return "accepted", ""


def _resident() -> int:
    """Bytes of memory in use now; resets the peak."""
    PROC_CLEAR_REFS.write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(field: str) -> int:
    line = next(line for line in PROC_STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
