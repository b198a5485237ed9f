"""Calls a function on all files of a dataset, with all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
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
FILES_PER_CALL = 128
"""Files that a process handles between two messages."""
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
    parts = (list(paths[start : start + FILES_PER_CALL]) for start in range(0, len(paths), FILES_PER_CALL))
    try:
        yield from map_in_processes(partial(function, files), parts, processes)
    except BrokenProcessPool:
        raise UserError(
            f"A process that {verb}s images has ended unexpectedly, perhaps for lack of memory; start again: what was"
            f" {verb}d is remembered."
        ) from None
