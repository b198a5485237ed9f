"""Processes that work for this one: forked on Linux, they end with it, whatever ends it."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from copy import copy
from itertools import islice
from multiprocessing import get_context
from threading import Thread
from typing import TypeVar

from runner.utils.signals import ignore_stop_signals

Item = TypeVar("Item")
Result = TypeVar("Result")


def process_pool(processes: int) -> ProcessPoolExecutor:
    """A pool whose processes end with this one. Each holds a copy of what this process has open."""
    return ProcessPoolExecutor(processes, _context(), _start, (os.getpid(),))


def stop_pool(pool: ProcessPoolExecutor) -> None:
    """End the processes, also those that do not answer: the interpreter would wait for them when it exits."""
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)


def map_in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Result]:
    """The function's results in the order of the items, from processes of their own.

    Both must be picklable. A few items are processed before the caller takes them.

    Raises what the function raises, and `BrokenProcessPool` if a process dies.
    """
    remaining = iter(items)
    pool = process_pool(processes)
    try:
        pending = deque(pool.submit(function, item) for item in islice(remaining, 4 * processes))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
        pool.shutdown()
    finally:
        stop_pool(pool)


def _context():  # type: ignore[no-untyped-def]
    """How processes are started. The executor ends those whose sibling has died by `terminate`, which they ignore."""
    if sys.platform != "linux":
        return get_context("spawn")
    context = copy(get_context("fork"))
    context.Process = type("Process", (context.Process,), {"terminate": context.Process.kill})  # type: ignore[misc]
    return context


def _start(parent: int) -> None:
    """Begin a process. A signal to all processes of a job is handled by the parent, which stops its workers itself."""
    gc.freeze()  # collections would look through what the parent had, and copy its memory
    ignore_stop_signals()
    Thread(target=_exit_with, args=(parent,), daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


def _exit_with(parent: int) -> None:
    """Wait for the parent to end, however it does, and end."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
