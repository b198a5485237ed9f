"""Calls a function on all files of a dataset, with all cores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from runner.data.columns import Paths
from runner.data.files import ImageFiles
from runner.utils.errors import UserError
from runner.utils.process_pool import map_in_processes
from runner.utils.processes import cpu_count
from runner.utils.threads import map_in_threads

MIN_FILES_FOR_PROCESSES = 2048
"""For fewer files threads suffice: starting processes costs more than it saves."""
FIRST_CALL, LARGEST_CALL = 32, 1024
"""Files that a process handles between two messages, at first and at most."""
SECONDS_PER_CALL = 0.05
"""What such a call is to take: short, for progress and to lose little; not too short, since messages cost time."""
Result = TypeVar("Result")


def map_files(
    function: Callable[[ImageFiles, list[str]], Result], files: ImageFiles, paths: Paths, verb: str
) -> Iterator[Result]:
    """The function's results for some files at a time, in order.

    Args:
        function: Picklable; it gets the dataset and some paths.
        files: The dataset.
        paths: The files.
        verb: What happens to the images, for messages: "decode".

    Raises `UserError` if a process dies.
    """
    processes = cpu_count()
    if len(paths) < MIN_FILES_FOR_PROCESSES:  # Pillow decodes outside the GIL
        calls = map_in_threads(lambda path: function(files, [path]), paths, processes, 4 * processes)
        yield from (result for _, result in calls)
        return
    timing = _Timing()
    call: Callable[[list[str]], tuple[Result, int, float]] = partial(_timed, function, files)
    try:
        for result, count, seconds in map_in_processes(call, _parts(paths, timing), processes):
            timing.add(count, seconds)
            yield result
    except BrokenProcessPool:
        raise UserError(
            f"A process that {verb}s images has ended unexpectedly, perhaps for lack of memory; start again: what was"
            f" {verb}d is remembered."
        ) from None


@dataclass
class _Timing:
    """How long files take, as far as it is known."""

    files: int = 0
    seconds: float = 0.0

    def add(self, files: int, seconds: float) -> None:
        self.files += files
        self.seconds += seconds

    @property
    def files_per_call(self) -> int:
        if not self.files:
            return FIRST_CALL
        return int(min(max(SECONDS_PER_CALL * self.files / max(self.seconds, 1e-9), 1), LARGEST_CALL))


def _parts(paths: Paths, timing: _Timing) -> Iterator[list[str]]:
    """The paths in parts, which are chosen as they are taken."""
    start = 0
    while start < len(paths):
        end = start + timing.files_per_call
        yield paths[start:end].to_list()
        start = end


def _timed(
    function: Callable[[ImageFiles, list[str]], Result], files: ImageFiles, paths: list[str]
) -> tuple[Result, int, float]:
    """The function's result, how many files it is of, and how many seconds it took."""
    start = time.perf_counter()
    return function(files, paths), len(paths), time.perf_counter() - start
