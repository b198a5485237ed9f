"""What several hosts gain and cost: features computed on two of them, and a training on two instead of one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.support.host_launches import HostLaunch, launch
from benchmarks.support.host_runs import NAME, RunFolder, RunFolders
from benchmarks.support.hosts import Host
from benchmarks.support.small_run import machine_metric
from runner.utils.console import Terminal

LAUNCH_TIMEOUT = 600.0
"""Seconds that a training may take on a busy machine."""
EXTRACTION = {
    "model.arch": "vgg16",
    "augment.resize": "64",
    "augment.crop": "64",
    "train.epochs": "1",
    "features.batch_size": "32",
    "checkpoints.minutes": "auto",
}
"""A training that is nearly nothing but features: each image once."""
EXTRACTION_IMAGES = 2000
LOOP_EPOCHS = 60
LOOP = {"train.epochs": str(LOOP_EPOCHS), "checkpoints.minutes": "auto"}
"""A training with many epochs on cached features."""
VIEWS = 2
"""Augmented views: the first epochs compute features."""
LOOP_IMAGES = 800


def measure_scaling(
    hosts: Sequence[Host], rounds: int, folders: RunFolders, terminal: Terminal
) -> dict[str, Any]:
    """Rate of extraction on two hosts of one core, with one cache, ÷ on one; medians, in turns.

    The time is that of an epoch: with dividing the work, waiting for each other, and training a small head.
    """
    seconds: dict[int, list[float]] = {1: [], 2: []}
    unshared: list[float] = []
    for number in range(rounds):
        for count in (1, 2):
            run = folders.new(f"extraction-{number}-{count}")
            _train(hosts[:count], run, cores=range(count))
            seconds[count].append(_epoch_seconds(run))
        unshared.append(_unshared_seconds(hosts, folders, number))
        terminal.line(
            f"extraction, round {number + 1}: {seconds[1][-1]:.2f} s, {seconds[2][-1]:.2f} s on two hosts,"
            f" {unshared[-1]:.2f} s on two that share nothing and do half of it each"
        )
    one, two, limit = (statistics.median(values) for values in (seconds[1], seconds[2], unshared))
    return {
        "scaling_2_hosts": round(one / two, 3),
        "scaling_2_cores": round(one / limit, 3),
        "extraction_seconds": [round(one, 2), round(two, 2)],
    }


def measure_overhead(
    hosts: Sequence[Host], rounds: int, folders: RunFolders, terminal: Terminal
) -> dict[str, Any]:
    """Share of time that two processes on two hosts take more than on one; medians, in turns."""
    places = {"one": [hosts[0], hosts[0]], "two": list(hosts[:2])}
    seconds: dict[str, list[tuple[float, float]]] = {place: [] for place in places}
    for number in range(rounds):
        for place, used in places.items():
            run = folders.new(f"loop-{number}-{place}")
            whole = _train(used, run)
            epochs = machine_metric(run.path, NAME, "epoch_seconds")
            loop = sum(value for step, value in epochs.items() if step > VIEWS)
            seconds[place].append((loop, whole))
        latest = ", ".join(
            f"{place}: {times[-1][0]:.2f} of {times[-1][1]:.1f} s" for place, times in seconds.items()
        )
        terminal.line(f"epochs of a run on one host and on two, round {number + 1}: {latest}")
    (loop_1, run_1), (loop_2, run_2) = (
        [statistics.median(values) for values in zip(*seconds[place], strict=True)]
        for place in ("one", "two")
    )
    return {
        "overhead_loop": round(loop_2 / loop_1 - 1, 4),
        "overhead_run": round(run_2 / run_1 - 1, 4),
        "one_host_seconds": [round(loop_1, 2), round(run_1, 2)],
        "two_hosts_seconds": [round(loop_2, 2), round(run_2, 2)],
    }


def _unshared_seconds(hosts: Sequence[Host], folders: RunFolders, number: int) -> float:
    """Seconds in which two hosts of one core, which each compute all features for themselves, would do all together.

    It is what the cores can do: they may belong to one core of the processor, or be busy with something else.
    """
    runs = [folders.new(f"extraction-{number}-alone-{core}") for core in range(2)]
    launched = [
        launch([host], [run.words], cores=[core])
        for core, (host, run) in enumerate(zip(hosts[:2], runs, strict=True))
    ]
    for each in launched:
        _finish(each)
    return 1 / sum(1 / _epoch_seconds(run) for run in runs)


def _epoch_seconds(run: RunFolder) -> float:
    """Seconds of the only epoch of a run."""
    (seconds,) = machine_metric(run.path, NAME, "epoch_seconds").values()
    return seconds


def _train(hosts: Sequence[Host], run: RunFolder, cores: Sequence[int] = ()) -> float:
    """Train with a process on each host, each on a core of its own if there are some; the seconds that it takes.

    Raises RuntimeError if that fails.
    """
    start = time.monotonic()
    _finish(launch(hosts, [run.words] * len(hosts), cores=cores))
    return time.monotonic() - start


def _finish(launched: HostLaunch) -> None:
    """Wait for the end of a training. Raises RuntimeError if it fails."""
    if any(launched.wait(LAUNCH_TIMEOUT)):
        raise RuntimeError(f"a training failed: {launched.text(0)[-2000:]}")
