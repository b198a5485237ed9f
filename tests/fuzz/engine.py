"""Running cases where nothing that they do can do harm: in a child process that may hang, swell or crash."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

FORMATS: tuple[str, ...] = (
    "experiment",
    "space",
    "journal",
    "manifest",
    "checkpoint",
    "store",
    "recipe",
    "names",
    "boxes",
    "image",
    "model",
    "old model",
    "scan",
    "statistics",
    "weights",
    "pickle",
    "environment",
    "events",
    "owner",
    "run",
    "snapshot",
)
LIMIT = 5.0
"""Seconds that a case may take."""
TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Report:
    """What came of the cases of a format. Each fault goes with the number of its case."""

    format: str
    cases: int = 0
    accepted: int = 0
    """Read, and rightly so."""
    refused: int = 0
    """Refused in one sentence."""
    tracebacks: list[tuple[int, str]] = field(default_factory=list)
    """Ended in another exception than a user's, or ended the process."""
    wrong: list[tuple[int, str]] = field(default_factory=list)
    """Read what is not right, or said so in no single sentence, or took too much memory."""
    slow: list[tuple[int, str]] = field(default_factory=list)
    """Took more than the limit; the process was ended there."""
    seconds: float = 0.0

    @property
    def faults(self) -> list[tuple[int, str]]:
        """All that must not be."""
        return sorted(self.tracebacks + self.wrong + self.slow)

    def __str__(self) -> str:
        return (
            f"{self.format:<12} {self.cases:>6,} cases in {self.seconds:5.1f} s: {self.accepted:,} read,"
            f" {self.refused:,} refused, {len(self.tracebacks)} tracebacks, {len(self.wrong)} wrong,"
            f" {len(self.slow)} slow"
        )


def fuzz(format_name: str, cases: int, folder: Path, first: int = 0, limit: float = LIMIT) -> Report:
    """Feed so many damaged files of a format to the runner's reader of it.

    Args:
        format_name: One of `FORMATS`.
        cases: How many.
        folder: For the files.
        first: The number of the first case; a case is the same whichever comes before it.
        limit: Seconds that a case may take.
    """
    began, report = time.monotonic(), Report(format_name)
    case, stop = first, first + cases
    while case < stop:
        with tempfile.TemporaryDirectory(prefix=f"{format_name}-", dir=folder) as name:
            job = {"format": format_name, "folder": name, "first": case, "stop": stop, "limit": limit}
            ready = False
            for line in _lines(job):
                if "ready" in line:
                    ready = True
                elif "case" in line:
                    _count(report, line, limit)
                    case = line["case"] + 1
                elif case < stop:
                    died = "".join(Path(name, each).read_text(errors="replace") for each in ("died", "said"))
                    if not ready:
                        raise RuntimeError(f"the cases of {format_name} cannot begin: {died}")
                    _bury(report, case, line["ended"], died)
                    case += 1
    report.seconds = time.monotonic() - began
    return report


def _count(report: Report, line: dict[str, Any], limit: float) -> None:
    report.cases += 1
    kind = line["kind"]
    if kind == "accepted":
        report.accepted += 1
    elif kind == "refused":
        report.refused += 1
    else:
        {"traceback": report.tracebacks, "wrong": report.wrong}[kind].append((line["case"], line["text"]))
    if line["seconds"] > limit:
        report.slow.append((line["case"], f"took {line['seconds']:.1f} s"))


def _bury(report: Report, case: int, status: int, died: str) -> None:
    """Note the case at which the process ended, and what it was at."""
    report.cases += 1
    if died.startswith("Timeout"):
        report.slow.append((case, died[:4000]))
    else:
        report.tracebacks.append((case, f"the process ended with {status}: {died[-4000:]}"))


def _lines(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What the worker says of a job, up to its end."""
    worker = _worker()
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        said = json.loads(line)
        yield said
        if "ended" in said:
            return
    raise RuntimeError(f"the fuzzing process has ended ({worker.wait()})")


@cache
def _worker() -> subprocess.Popen[str]:
    """One for all jobs of this process, for what importing costs."""
    path = os.pathsep.join((str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")))
    worker = subprocess.Popen(
        [sys.executable, "-m", "fuzz.worker"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(_end, worker)
    return worker


def _end(worker: subprocess.Popen[str]) -> None:
    if worker.stdin:
        worker.stdin.close()
    worker.wait(20)
