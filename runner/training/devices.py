"""Processes, devices and precision of a run: decided once, the same on every process."""

from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.utils import (
    GradientAccumulationPlugin,
    TorchDynamoPlugin,
    broadcast_object_list,
    parse_flag_from_env,
)

from runner.config.schema import Experiment
from runner.features.extractor import can_compile, worth_compiling
from runner.utils.cpu import cores
from runner.utils.errors import PROCESSES, UserError
from runner.utils.processes import parent_command

PATIENCE = timedelta(hours=6)
"""How long processes wait for each other: rank 0 may be scanning or downloading a large data set."""


def start(experiment: Experiment) -> Accelerator:
    """Join the processes of this launch, and decide the precision.

    Raises `UserError` where they are fewer than asked for, or the precision cannot be had.
    """
    state = join()
    decided = broadcast_object_list([precision(experiment.train.precision, state.device)])[0]
    # The plugins are spelled out: without, Accelerate would take them from environment variables.
    return Accelerator(
        cpu=state.device.type == "cpu",
        mixed_precision=decided,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
    )


def join() -> PartialState:
    """Join the processes of this launch. Raises `UserError` where they are fewer than asked for."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    # Without being told so, Accelerate takes several processes without GPUs for as many runs of one.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.cuda.is_available())
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    asked = asked_processes()
    if asked is not None and asked != state.num_processes:
        raise UserError(
            f"{asked} processes were asked for, but {state.num_processes} started (accelerate launch --cpu does that);"
            f" use ./launch.sh train -n {asked}, or ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"
            f" --num_processes {asked}."
        )
    if state.device.type == "cpu":
        _use_cores(state.num_processes)
    return state


def asked_processes() -> int | None:
    """How many processes the launch was asked for; None where nobody says."""
    if said := os.environ.get(PROCESSES):
        return int(said)
    words = parent_command()
    for place, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or (words[place + 1] if place + 1 < len(words) else "")
            return int(value) if value.isdigit() else None
    if any("accelerate" in word for word in words):
        with suppress(Exception):  # a file that Accelerate itself could not have read
            file = words[words.index("--config_file") + 1] if "--config_file" in words else None
            if file or Path(default_config_file).exists():
                return int(load_config_from_file(file).num_processes)
    return None


def _use_cores(processes: int) -> None:
    """`accelerate launch` gives each process one thread unless told otherwise; give it its share of the cores."""
    words = parent_command()
    chosen = any(word.startswith(("--num_cpu_threads_per_process", "--num-cpu-threads")) for word in words)
    if chosen or not any("accelerate" in word for word in words):
        return
    with suppress(psutil.Error):
        if "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ():
            return
    torch.set_num_threads(max(1, cores() // processes))


def precision(setting: str, device: torch.device) -> str:
    """What `train.precision` means on a device: no, fp16 or bf16. Raises `UserError` for fp16 on a CPU."""
    if setting == "fp16" and device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU; on a CPU use bf16, no or auto.")
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "no"


def at_hand(experiment: Experiment) -> Experiment:
    """An experiment that was run on another device, as this one can judge it: float32 where there is no fp16."""
    if experiment.features.compile is True and not torch.cuda.is_available() and not can_compile():
        experiment = dataclasses.replace(
            experiment, features=dataclasses.replace(experiment.features, compile=False)
        )
    if experiment.train.precision != "fp16" or torch.cuda.is_available():
        return experiment
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, precision="no"))


def decided(experiment: Experiment, images: int, accelerator: Accelerator) -> Experiment:
    """An experiment with what it leaves to the device decided: precision, chunk, compiling; on all processes alike.

    Args:
        images: The number of all images of the data set: what is decided must not hang on split or views, which
            come and go over the same rows.
    """
    settings, device = experiment.features, accelerator.device
    chunk = settings.batch_size if settings.batch_size != "auto" else 256 if device.type == "cuda" else 32
    compiled = settings.compile
    if compiled == "auto":
        compiled = broadcast_object_list([worth_compiling(images, experiment.augment.crop, device)])[0]
    return dataclasses.replace(
        experiment,
        features=dataclasses.replace(settings, batch_size=chunk, compile=compiled),
        train=dataclasses.replace(experiment.train, precision=accelerator.mixed_precision),
    )


def describe(accelerator: Accelerator) -> str:
    """Device and processes, for a person."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    count = accelerator.num_processes
    return f"{count} × {name}" if count > 1 else name
