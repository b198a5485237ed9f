"""The share of the host's CPU cores that a worker computes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from runner.utils.processes import cpu_count

_ALL_CORES: set[int] = set()
"""The cores that this worker may use outside its share; empty if it has no share."""


def pin_to_share(worker: int, workers: int, threads: int | None) -> None:
    """Restrict this process to its share of the cores: `threads` of them, or an equal part for each worker.

    On systems without processor affinity it only limits torch's threads.
    """
    if not hasattr(os, "sched_setaffinity"):
        torch.set_num_threads(threads or max(1, cpu_count() // workers))
        return
    _ALL_CORES.update(os.sched_getaffinity(0))
    cores = sorted(_ALL_CORES)
    share = threads or max(1, len(cores) // workers)
    _bind({cores[(worker * share + index) % len(cores)] for index in range(share)})
    torch.set_num_threads(share)


@contextmanager
def all_cores() -> Iterator[None]:
    """Compute on all cores within the block: for features, which the other workers wait for."""
    if not _ALL_CORES:
        yield
        return
    share, threads = os.sched_getaffinity(0), torch.get_num_threads()
    _bind(_ALL_CORES)
    torch.set_num_threads(len(_ALL_CORES))
    try:
        yield
    finally:
        _bind(share)
        torch.set_num_threads(threads)


def _bind(cores: set[int]) -> None:
    """Restrict all threads of this process to these cores; `os.sched_setaffinity(0, …)` does so for one thread only."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(OSError):  # it has just ended
            os.sched_setaffinity(int(thread), cores)
