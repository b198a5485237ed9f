"""Kills runs with SIGKILL, resumes them, and compares their records with those of an undisturbed run."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.support.small_run import arguments, difference, metric_points, run_statuses
from runner.utils.console import Terminal

FREQUENT_SNAPSHOTS = {"checkpoints.minutes": "0.005"}
PRELOADED = (
    "runner.training.repeated",
    "runner.train",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "pytorch_grad_cam",
)
"""Modules that the fork server imports once for all children."""


@dataclass(frozen=True)
class KillPoint:
    """When a run is killed: `seconds` after its start, or in the middle of its write number `write` (from 1)."""

    seconds: float | None = None
    write: int | None = None


def measure_kills(kills: int, seed: int, folder: Path, terminal: Terminal) -> dict[str, Any]:
    """Kill and resume `kills` runs, half of them during a write; count those that end as if undisturbed."""
    choice = random.Random(seed)  # noqa: S311 (moments, not secrets)
    train_in_child(arguments(folder, "first", FREQUENT_SNAPSHOTS))  # imports, and creates the database
    start = time.monotonic()
    writes = train_in_child(arguments(folder, "undisturbed", FREQUENT_SNAPSHOTS))
    duration = time.monotonic() - start
    if writes is None:
        raise RuntimeError("the undisturbed run was killed")
    expected = metric_points(folder, "undisturbed")
    identical = 0
    with terminal.progress("kill and resume", kills, "runs") as advance:
        for number in range(kills):
            name, point = _killed_run(
                folder, f"kill-{number:02}", number % 2 == 1, choice, (duration, writes)
            )
            train_in_child(_resumable(folder, name))
            points, statuses = metric_points(folder, name), run_statuses(folder, name)
            same = points == expected and statuses[-1] == "FINISHED" and "RUNNING" not in statuses
            identical += same
            if not same:
                terminal.warn(f"{name}, killed at {point}: {statuses}, {difference(expected, points)}")
            advance(1)
    return {"kills": kills, "kills_identical": identical}


def _killed_run(
    folder: Path, prefix: str, during_write: bool, choice: random.Random, limits: tuple[float, int]
) -> tuple[str, KillPoint]:
    """The name of a run that was killed, and when. A run that ended before the random moment is repeated."""
    duration, writes = limits
    attempt = 0
    while True:
        attempt += 1
        name = f"{prefix}-{attempt}"
        point = KillPoint(seconds=choice.uniform(0, duration))
        if during_write:
            point = KillPoint(write=choice.randint(1, writes))
        if train_in_child(_resumable(folder, name), point) is None:
            return name, point


def _resumable(folder: Path, name: str) -> list[str]:
    return arguments(folder, name, FREQUENT_SNAPSHOTS, "--resume", "auto")


def train_in_child(argv: list[str], kill: KillPoint | None = None) -> int | None:
    """Train in a child process: the number of its writes, or None if it was killed.

    Raises RuntimeError if training fails.
    """
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train, args=(argv, kill.write if kill else None, sender))
    process.start()
    sender.close()
    if kill is not None and kill.seconds is not None:
        process.join(kill.seconds)
        process.kill()
    process.join()
    if process.exitcode == -signal.SIGKILL:
        return None
    if process.exitcode:
        raise RuntimeError(f"training failed with exit status {process.exitcode}")
    return int(receiver.recv())


def _train(argv: list[str], fatal_write: int | None, result: Connection) -> None:
    """In the child: `runner/train.py` without its standard output; sends the number of writes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from runner.train import main as train

    writes = _WriteCounter(fatal_write)
    status = train(argv)
    result.send(writes.count)
    sys.exit(status)


class _WriteCounter:
    """Counts what this process writes to disk, and kills it in the middle of one write.

    Counted are calls of fsync, renames, tensor files and journal events. A killed write of a tensor file or an event
    leaves half of it on disk.

    Args:
        fatal: Number of the write, from 1, that kills the process; None: none.
    """

    def __init__(self, fatal: int | None) -> None:
        from runner.tracking.journal import Journal
        from runner.utils import tensors

        self.count = 0
        self._fatal = fatal
        self._lock = threading.Lock()
        self._wrap(os, "fsync")
        self._wrap(Path, "replace")
        self._wrap(tensors, "save_file", _write_half_of_tensors)
        self._wrap(Journal, "append", _write_half_of_event)

    def _wrap(self, owner: Any, name: str, write_half: Callable[..., None] = lambda *args: None) -> None:
        """Count calls of `owner.name`. Before the kill, `write_half` gets the arguments of the call."""
        write = getattr(owner, name)

        def counted(*args: Any) -> Any:
            with self._lock:
                self.count += 1
                if self.count == self._fatal:
                    write_half(*args)
                    os.kill(os.getpid(), signal.SIGKILL)
            return write(*args)

        setattr(owner, name, counted)


def _write_half_of_tensors(tensors: dict[str, Any], path: Path, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path, metadata)
    os.truncate(path, path.stat().st_size // 2)


def _write_half_of_event(journal: Any, event: dict[str, Any]) -> None:
    line = json.dumps(event).encode()
    with (journal.folder / "events.jsonl").open("ab") as file:
        file.write(line[: len(line) // 2])
