"""Processes whose clock is wrong, by libfaketime."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import ROOT

SLEEP = """
import select, time
time.sleep = lambda seconds: select.select([], [], [], seconds) and None
"""
"""For Python's start: libfaketime 0.9.10 refuses the call of the kernel that `time.sleep` makes."""


def wrong_clock(shift: str, folder: Path) -> dict[str, str]:
    """Variables of a Python process whose clock is `shift` (as `+1h`) ahead. Skips the test without libfaketime.

    Args:
        shift: How much it is ahead.
        folder: For a file that the process reads when it starts.
    """
    libraries = sorted(Path("/usr/lib").glob("**/faketime/libfaketimeMT.so.1"))
    if not libraries:
        pytest.skip("libfaketime is not installed")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(SLEEP)
    # A clock that is set wrong does not change the time since the host's start.
    return {
        "LD_PRELOAD": str(libraries[0]),
        "FAKETIME": shift,
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
    }
