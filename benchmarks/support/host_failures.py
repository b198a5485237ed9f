"""Trainings on two hosts of which one fails, and which are then resumed: do they end as if undisturbed, and how soon
do the processes on the other host end?"""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import Any

from benchmarks.support.host_launches import HostLaunch, launch
from benchmarks.support.host_runs import RunFolder, RunFolders
from benchmarks.support.hosts import Host
from benchmarks.support.phases import PHASES, TRAINING, Timeline, record_timeline
from benchmarks.support.small_run import MetricPoints
from runner.utils.console import Terminal

LAUNCH_TIMEOUT = 300.0
"""Seconds that a launch, or the end of one after a failure, may take on a busy machine."""
ATTEMPTS = 6
"""How often a training is repeated that ended before its host failed."""
SHORTEST = 30.0
"""Seconds that a failure lasts at least, even if the other process ends sooner."""
JOIN_MINUTES = "0.5"
"""That the hosts wait for each other at the start: one that fails before they have met never comes."""
WAYS: dict[str, tuple[Callable[[Host], None], Callable[[Host], None]]] = {
    "kill": (Host.kill, Host.reboot),
    "pause": (Host.pause, Host.unpause),
    "cut": (Host.cut_cable, Host.mend_cable),
}
"""How a host fails, and how that is undone: power failure, frozen machine, cut cable."""


@dataclass(frozen=True)
class Failure:
    """What happened when a host failed.

    Args:
        number: From 0.
        way: One of `WAYS`.
        host: Its name.
        rank: Of its process.
        phase: Of the training.
        seconds: Until all other processes had ended; None: they did not.
        status: Of the other process.
        resumed: Exit statuses of the processes that resumed the run; empty if it did not need that: all had ended well.
        continued: Whether they said that they continued the run.
        identical: Whether the run then had the metrics of an undisturbed one in every bit.
        runs: The statuses of the runs in MLflow.
        output: The end of what the run printed last, where it is not identical.
    """

    number: int
    way: str
    host: str
    rank: int
    phase: str
    seconds: float | None
    status: int | None
    resumed: list[int] = field(default_factory=list)
    continued: bool = False
    identical: bool = False
    runs: list[str] = field(default_factory=list)
    output: str = ""

    def __str__(self) -> str:
        ended = "did not end" if self.seconds is None else f"ended after {self.seconds:.1f} s"
        what = "continued, " * self.continued + ("identical" if self.identical else "NOT IDENTICAL")
        return (
            f"{self.number}: {self.way} {self.host} (rank {self.rank}) in {self.phase}: the other process {ended}"
            f" with status {self.status}; resumed: {self.resumed}, {what}, {', '.join(self.runs)}{self.output}"
        )


@dataclass(frozen=True)
class Undisturbed:
    """A training without failures.

    Args:
        points: Its metrics.
        timeline: Its phases.
    """

    points: MetricPoints
    timeline: Timeline


def start(hosts: Sequence[Host], run: RunFolder, *more: str) -> HostLaunch:
    """Start a training on hosts."""
    return launch(hosts, [[*run.words, *more]] * len(hosts), RUNNER_JOIN_TIMEOUT=JOIN_MINUTES)


def train_undisturbed(hosts: Sequence[Host], run: RunFolder) -> Undisturbed:
    """Train without failures. Raises RuntimeError if that fails."""
    launched = start(hosts, run)
    timeline = record_timeline(
        lambda: launched.text(0), lambda: any(process.poll() is None for process in launched.processes)
    )
    ((status, points),) = run.runs()
    if any(launched.wait(0)) or status != "FINISHED":
        raise RuntimeError(f"the undisturbed training failed: {launched.text(0)[-2000:]}")
    return Undisturbed(points, timeline)


def measure_failures(
    hosts: Sequence[Host], counts: tuple[int, int], seed: int, folders: RunFolders, terminal: Terminal
) -> dict[str, Any]:
    """Let hosts fail, on pairs of hosts that train side by side; count the runs that end as if undisturbed.

    Args:
        hosts: An even number.
        counts: How often a host is killed (each fourth time it is paused), and how often it is cut off.
        seed: Of moments and hosts.
        folders: Make the trainings.
        terminal: For a line for each failure.
    """
    kills, partitions = counts
    ways = ["pause" if number % 4 == 3 else "kill" for number in range(kills)] + ["cut"] * partitions
    pairs: SimpleQueue[Sequence[Host]] = SimpleQueue()
    for first in range(0, len(hosts), 2):
        pairs.put(hosts[first : first + 2])

    def train(number: int) -> Undisturbed:
        pair = pairs.get()
        try:
            return train_undisturbed(pair, folders.new(f"undisturbed-{number}"))
        finally:
            pairs.put(pair)

    def fail(number: int) -> Failure:
        pair = pairs.get()
        try:
            found = _fail_and_resume(pair, (number, ways[number], seed), folders, undisturbed)
        finally:
            pairs.put(pair)
        terminal.line(str(found))
        return found

    with ThreadPoolExecutor(len(hosts) // 2) as pool:
        # Side by side, as those that are disturbed: moments are chosen from how long it takes.
        undisturbed, *others = pool.map(train, range(len(hosts) // 2))
        if any(each.points != undisturbed.points for each in others):
            raise RuntimeError("undisturbed trainings differ")
        terminal.line(f"undisturbed: {undisturbed.timeline}")
        failures = list(pool.map(fail, range(len(ways))))
    waits = [each.seconds for each in failures]
    return {
        "node_kills": kills,
        "node_kills_identical": sum(each.identical for each in failures[:kills]),
        "partitions": partitions,
        "partitions_identical": sum(each.identical for each in failures[kills:]),
        "restarted": sum(bool(each.resumed) for each in failures),
        "continued": sum(each.continued for each in failures),
        "longest_wait_seconds": None if None in waits else max(map(float, filter(None, waits)), default=None),
        "failures": [asdict(each) for each in failures],
    }


def _fail_and_resume(
    pair: Sequence[Host], which: tuple[int, str, int], folders: RunFolders, undisturbed: Undisturbed
) -> Failure:
    """Let one of two hosts fail while they train, and resume the run. Raises RuntimeError if it never runs so long.

    Args:
        pair: The hosts.
        which: Number of the failure, way, and seed.
        folders: Make the training.
        undisturbed: The same training without failures.
    """
    number, way, seed = which
    choice = random.Random(f"{seed} {number}")  # noqa: S311 (moments, not secrets)
    for attempt in range(ATTEMPTS):
        run = folders.new(f"{way}-{number}-{attempt}")
        launched = start(pair, run)
        moment = undisturbed.timeline.moment(number, choice)
        running = [0, 1]

        def still_running(launched: HostLaunch = launched, running: list[int] = running) -> bool:
            running[:] = [rank for rank, each in enumerate(launched.processes) if each.poll() is None]
            return bool(running)

        if moment.wait(lambda of=launched: of.text(0), still_running):  # type: ignore[misc]
            break
    else:
        raise RuntimeError(f"{ATTEMPTS} trainings ended before a host failed")
    lost = choice.choice(running)
    seconds, status = _fail(pair, launched, lost, way)
    resumed: list[int] = []
    ended_well = _wait(launched, [0, 1]) == [0, 0]
    if not ended_well:
        launched = start(pair, run, "--resume", "auto")
        resumed = _wait(launched, [0, 1])
        ended_well = resumed == [0, 0]
    identical = ended_well and run.finished_as(undisturbed.points, moment.phase >= TRAINING)
    return Failure(
        number,
        way,
        pair[lost].name,
        lost,
        PHASES[moment.phase],
        seconds,
        status,
        resumed,
        bool(resumed) and "resuming run" in launched.text(0),
        identical,
        [status for status, _ in run.runs()],
        "" if identical else "".join(f"\n{launched.text(rank)[-2000:]}" for rank in (0, 1)),
    )


def _fail(pair: Sequence[Host], launched: HostLaunch, lost: int, way: str) -> tuple[float | None, int | None]:
    """Let a host fail, and undo that when the other process has ended: its seconds until then, and its status."""
    fail, undo = WAYS[way]
    begin = time.monotonic()
    fail(pair[lost])
    ended = _wait(launched, [1 - lost])
    seconds = round(time.monotonic() - begin, 1) if ended else None
    time.sleep(max(0.0, SHORTEST - (time.monotonic() - begin)))
    undo(pair[lost])
    return seconds, ended[0] if ended else None


def _wait(launched: HostLaunch, ranks: Sequence[int]) -> list[int]:
    """The exit statuses of processes; they are killed, and there is none, if they take too long."""
    try:
        return launched.wait(LAUNCH_TIMEOUT, ranks)
    except subprocess.TimeoutExpired:
        launched.kill()
        return []
