"""Code that runs on two processes that compute together on the CPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from killed_runs import PRELOADED

RANKS = (0, 1)


def start_two(place: Path, function: Callable[..., int], *args: Any) -> list[BaseProcess]:
    """Start a function of a module on two processes; each ends with the exit status that it returns there.

    `place` gets their output, and the file through which they find each other.
    """
    context = multiprocessing.get_context("forkserver")  # its processes have loaded everything already
    context.set_forkserver_preload(PRELOADED)
    processes = [context.Process(target=_run_as, args=(rank, place, function, args)) for rank in RANKS]
    for process in processes:
        process.start()
    return [*processes]


def finish_two(place: Path, processes: list[BaseProcess], timeout: float = 240) -> None:
    """Wait for both; fails with the end of the output of one that failed or took longer than `timeout` seconds."""
    for rank, process in enumerate(processes):
        process.join(timeout)
        output = (place / f"output {rank}").read_text()[-3000:]
        assert process.exitcode == 0, output


def _run_as(rank: int, place: Path, function: Callable[..., int], args: tuple[Any, ...]) -> None:
    with (place / f"output {rank}").open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ |= {name: str(number) for name, number in numbers.items()} | {"ACCELERATE_USE_CPU": "true"}
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    store = f"file://{place}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    os._exit(function(*args))
