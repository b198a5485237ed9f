"""Processes that load batches of images. They are started once and serve all calls.

Each process holds a copy of what the parent has open, so that locks have to be released, not only closed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from runner.utils.errors import UserError
from runner.utils.process_pool import process_pool, stop_pool

Loaded: TypeAlias = Tensor | str
"""A batch, or why it cannot be loaded."""

MAX_SECONDS = 600.0
"""Longest wait for a batch."""
LAST_SECONDS = 5.0
"""Wait for the batches that are being loaded when nobody wants them any more; then their processes are ended."""
BATCHES_AHEAD = 2
"""Batches per process that are loaded before they are needed."""
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (only its free space is read)
MAX_SOCKET_PATH = 107
"""Bytes of the path of a Unix socket."""
SOCKET_NAME_LENGTH = len("/pymp-xxxxxxxx/listener-xxxxxxxx")
"""torch passes shared memory through sockets with such names in the folder for temporary files."""

_pools: dict[int, ProcessPoolExecutor] = {}
"""By number of processes."""


def load_in_processes(
    calls: Iterable[Callable[[], Loaded]], workers: int, batch_bytes: int, finish: Callable[[Tensor], Tensor]
) -> Iterator[Loaded]:
    """The results of picklable calls, in order, from `workers` processes.

    Args:
        calls: Each returns a batch or an error message.
        workers: Number of processes.
        batch_bytes: Size of the largest batch.
        finish: Applied to each batch in a thread of this process.

    Raises `UserError` if a process dies, or if there is no result for `MAX_SECONDS`.
    """
    pool = _pool(workers)
    ahead = BATCHES_AHEAD * workers
    shared = has_shared_memory(shared_bytes(workers, batch_bytes))
    pending: deque[tuple[Future[Any], Future[Loaded]]] = deque()
    remaining = iter(calls)
    try:
        pending.extend(_submit(pool, call, shared, finish) for call in islice(remaining, ahead))
        while pending:
            _, batch = pending[0]
            loaded = _result(batch)
            pending.popleft()
            pending.extend(_submit(pool, call, shared, finish) for call in islice(remaining, 1))
            yield loaded
    except BrokenProcessPool:
        _stop(workers)
        raise UserError(
            "A process that decodes images has ended unexpectedly, perhaps for lack of memory; start again with a"
            f" smaller data.workers than {workers}, or with data.workers=0."
        ) from None
    except TimeoutError:
        _stop(workers)
        raise UserError(
            f"No batch of images was decoded for {MAX_SECONDS:.0f} s; check the disk that holds them, or set"
            " data.workers=0."
        ) from None
    except GeneratorExit:  # whoever wanted the batches has enough of them, or has failed
        running = [call for call, _ in pending if not call.cancel()]
        if wait(running, LAST_SECONDS).not_done:
            _stop(workers)
        raise
    except BaseException:  # a signal, perhaps because a process hangs
        _stop(workers)
        raise


def _submit(
    pool: ProcessPoolExecutor, call: Callable[[], Loaded], shared: bool, finish: Callable[[Tensor], Tensor]
) -> tuple[Future[Any], Future[Loaded]]:
    """A call in a process, and its result, which is finished in the thread that receives it."""
    finished: Future[Loaded] = Future()
    submitted = pool.submit(_run, call, shared)

    def receive(future: Future[Loaded | np.ndarray]) -> None:
        try:
            loaded = future.result()
            batch = torch.from_numpy(loaded) if isinstance(loaded, np.ndarray) else loaded
            finished.set_result(batch if isinstance(batch, str) else finish(batch))
        except BaseException as error:
            finished.set_exception(error)

    submitted.add_done_callback(receive)
    return submitted, finished


def _result(batch: Future[Loaded]) -> Loaded:
    """Wait for a batch. Raises TimeoutError after `MAX_SECONDS`, in which a pause by Ctrl-Z counts as a short time."""
    step = MAX_SECONDS / 60
    for _ in range(60):
        if wait([batch], step).done:
            return batch.result()
    raise TimeoutError


def shared_bytes(workers: int, batch_bytes: int) -> int:
    """Shared memory for the batches that `workers` processes load ahead, with as much in reserve."""
    return 2 * (BATCHES_AHEAD + 1) * workers * batch_bytes


def has_shared_memory(size: int) -> bool:
    """Whether torch can pass `size` bytes through shared memory; if not, batches are copied through pipes."""
    folder = os.fsencode(tempfile.gettempdir())
    if len(folder) + SOCKET_NAME_LENGTH > MAX_SOCKET_PATH:
        return False
    return not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free >= size


def _pool(workers: int) -> ProcessPoolExecutor:
    pool = _pools.get(workers)
    if pool is not None and not all(process.is_alive() for process in (pool._processes or {}).values()):
        _stop(workers)  # one died while there was nothing to do
    if workers not in _pools:
        _pools[workers] = process_pool(workers)
    return _pools[workers]


def _stop(workers: int) -> None:
    """End the processes of a pool, if there is one."""
    if (pool := _pools.pop(workers, None)) is not None:
        stop_pool(pool)


def _run(call: Callable[[], Loaded], shared: bool) -> Loaded | np.ndarray:
    loaded = call()
    if isinstance(loaded, str):
        return loaded
    if shared:
        with suppress(RuntimeError):  # others have filled the shared memory
            return loaded.share_memory_()
    return loaded.numpy()
