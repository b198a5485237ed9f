"""Runs cases in a child process, which may hang, crash or run out of memory."""

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
    "labels",
    "parquet",
    "saved dataset",
    "zip",
    "tar",
    "compressed tar",
    "shard",
    "archive index",
    "exported run",
)
LIMIT = 5.0
"""Seconds that a case may take."""
TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Report:
    """The results of the cases of a format. Each problem has the number of its case."""

    format: str
    cases: int = 0
    accepted: int = 0
    """Read correctly."""
    refused: int = 0
    """Refused in one sentence."""
    tracebacks: list[tuple[int, str]] = field(default_factory=list)
    """Raised an exception other than `UserError`, or ended the process."""
    wrong: list[tuple[int, str]] = field(default_factory=list)
    """Read something wrong, refused it in more than one sentence, or used too much memory."""
    slow: list[tuple[int, str]] = field(default_factory=list)
    """Took longer than the limit; the process was stopped."""
    seconds: float = 0.0

    @property
    def faults(self) -> list[tuple[int, str]]:
        """All problems, by case."""
        return sorted(self.tracebacks + self.wrong + self.slow)

    def __str__(self) -> str:
        return (
            f"{self.format:<12} {self.cases:>6,} cases in {self.seconds:5.1f} s: {self.accepted:,} read,"
            f" {self.refused:,} refused, {len(self.tracebacks)} tracebacks, {len(self.wrong)} wrong,"
            f" {len(self.slow)} slow"
        )


def fuzz(format_name: str, cases: int, folder: Path, first: int = 0, limit: float = LIMIT) -> Report:
    """Feed damaged files of a format to the runner's reader of it.

    Args:
        format_name: One of `FORMATS`.
        cases: Number of files.
        folder: Where the files are written.
        first: The number of the first case. A case does not depend on those before it.
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
                    crash = "".join(
                        Path(name, each).read_text(errors="replace") for each in ("crash", "output")
                    )
                    if not ready:
                        raise RuntimeError(f"the cases of {format_name} cannot begin: {crash}")
                    _record_crash(report, case, line["ended"], crash)
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


def _record_crash(report: Report, case: int, status: int, crash: str) -> None:
    """Add the case at which the process ended, with its last output."""
    report.cases += 1
    if crash.startswith("Timeout"):
        report.slow.append((case, crash[:4000]))
    else:
        report.tracebacks.append((case, f"the process ended with {status}: {crash[-4000:]}"))


def _lines(job: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The lines that the worker sends for a job."""
    worker = _worker()
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    for line in worker.stdout:
        answer = json.loads(line)
        yield answer
        if "ended" in answer:
            return
    raise RuntimeError(f"the fuzzing process has ended ({worker.wait()})")


@cache
def _worker() -> subprocess.Popen[str]:
    """One worker for all jobs of this process, because its imports take seconds."""
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
