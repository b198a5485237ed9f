"""Code that runs on two processes that compute together on the CPU."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUIET, Recorder
from killed_runs import PRELOADED
from pictures import small_experiment

from runner.config.parser import parse
from runner.tracking.tracker import Tracker
from runner.training import devices, run

RANKS = (0, 1)
BATCHES = ("--train.batch_size", "7", "--features.compile", "false")
"""Two processes cannot share batches of seven evenly, nor the four images of the last one."""
Points = dict[tuple[str, int], float]
"""Values by metric and step."""


def logged_by_one_and_two(
    images: Path, variants: Mapping[str, Sequence[str]], folders: pytest.TempPathFactory
) -> list[dict[str, Points]]:
    """What the small experiment logs in each variant, on one process and on two that share nothing but the images."""
    alone, together = (folders.mktemp(each) for each in ("one", "two"))
    processes = start_two(together, _train_each, images, variants, together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        _train_each(images, variants, alone)
    finish_two(together, processes)
    return [torch.load(place / "logged", weights_only=True) for place in (alone, together)]


def _train_each(images: Path, variants: Mapping[str, Sequence[str]], place: Path) -> int:
    """Train each variant on all processes of this launch; the main one writes what was logged."""
    logged = {}
    for name, words in variants.items():
        small = small_experiment(images, place / "cache", place / "mlruns")
        experiment = parse([*small, *BATCHES, *words])[0]
        accelerator = devices.create_accelerator(experiment)
        records = Recorder(place / name) if accelerator.is_main_process else Tracker()
        run.train(experiment, accelerator, records, QUIET)
        if isinstance(records, Recorder):
            logged[name] = {(metric, step): value for metric, step, value in records.points}
    if logged:
        torch.save(logged, place / "logged")
    accelerator.end_training()
    return 0


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
