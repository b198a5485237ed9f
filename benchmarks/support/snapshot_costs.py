"""Measures what snapshots cost, and how soon an interrupted run trains again."""

from __future__ import annotations

import signal
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.support.kills import train_in_child
from benchmarks.support.outages import wait_until
from benchmarks.support.small_run import TRAIN_COMMAND, arguments, snapshot_seconds
from runner.utils.console import Terminal

RESUMES = 3
TIMEOUT = 120.0
"""Seconds to wait for a snapshot."""
LARGE_HEAD = {
    "augment.resize": "100",
    "augment.crop": "96",
    "augment.views": "none",
    "model.pool": "3",
    "model.width": "256",
    "train.epochs": "150",
}
"""A head as large as that of caltech101-pooled: 1.2 million parameters and their moments, 19 MB per snapshot."""
ENDLESS_RUN = {"checkpoints.minutes": "0", "train.epochs": "2000"}


def measure_snapshot_costs(folder: Path, terminal: Terminal) -> dict[str, Any]:
    """Share of a run's time that snapshots take at the default setting, and seconds from command to first step."""
    train_in_child(arguments(folder, "costs", LARGE_HEAD))
    spent, total = snapshot_seconds(folder, "costs")
    terminal.line(f"snapshots took {spent:.3f} s of a run of {total:.1f} s")
    argv = arguments(folder, "resume", ENDLESS_RUN, "--resume", "auto")
    _seconds_to_snapshot(argv, folder)  # a new run, which is resumed from here on
    resumes = [_seconds_to_snapshot(argv, folder) for _ in range(RESUMES)]
    return {
        "checkpoint_overhead": round(spent / total, 5),
        "resume_seconds": round(statistics.median(resumes), 2),
    }


def _seconds_to_snapshot(argv: list[str], folder: Path) -> float:
    """Seconds from the start of the command to its first new snapshot, which follows a step; then it is stopped."""
    before = _snapshots(folder)
    start = time.monotonic()
    run = subprocess.Popen([*TRAIN_COMMAND, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: bool(_snapshots(folder) - before), TIMEOUT)
    taken = time.monotonic() - start
    run.send_signal(signal.SIGTERM)
    run.wait()
    return taken


def _snapshots(folder: Path) -> set[Path]:
    return set((folder / "mlruns" / "journals").glob("*/state/[0-9]*.safetensors"))
