"""Processes that train the runs of a repeated run side by side, each on its share of the CPU's cores.

A head on cached features keeps one core busy, but hardly two: N processes with a core each take about an Nth of the
time.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized

from runner.utils.console import Terminal
from runner.utils.cpu_share import pin_to_share
from runner.utils.processes import exit_with_parent
from runner.utils.signals import Interrupted, interrupt_on_signals

POLL_INTERVAL = 0.2
"""Seconds between two looks at the processes."""


def train_side_by_side(
    open_worker: Callable[[], Callable[[int], object]],
    runs: int,
    workers: int,
    count_finished: Callable[[], int],
    terminal: Terminal,
) -> None:
    """Train runs in other processes. When it returns, those that failed there, or were killed, are not finished.

    Args:
        open_worker: Called in each process; returns the function that trains the run with an index. It is pickled.
        runs: How many there are.
        workers: Processes.
        count_finished: How many of the runs are finished.
        terminal: Shows progress.

    Raises `Interrupted` if this process is asked to stop; the others have saved their state by then.
    """
    context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
    following = context.Value("q", 0)
    processes = [
        context.Process(target=_work, args=(open_worker, runs, following, index, workers, os.getpid()))
        for index in range(workers)
    ]
    try:
        with terminal.progress("train", runs, "runs") as advance:
            for process in processes:
                process.start()
            done = 0
            while any(process.is_alive() for process in processes):
                time.sleep(POLL_INTERVAL)
                if (finished := count_finished()) > done:
                    advance(finished - done)
                    done = finished
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()


def _work(
    open_worker: Callable[[], Callable[[int], object]],
    runs: int,
    following: Synchronized[int],
    index: int,
    workers: int,
    parent: int,
) -> None:
    """Train runs until none is left; the process of a worker."""
    interrupt_on_signals()
    exit_with_parent(parent)
    try:
        train = open_worker()
        pin_to_share(index, workers, None)
        while (run := _take(following)) < runs:
            train(run)
    except Interrupted as error:
        sys.exit(128 + error.signal)
    except Exception:  # the parent trains this run again, and says why it fails
        sys.exit(1)


def _take(following: Synchronized[int]) -> int:
    """The index of the next run."""
    with following.get_lock():
        following.value += 1
        return following.value - 1
