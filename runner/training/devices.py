"""Processes, device and precision of a launch; what "auto" means is decided once, the same on every process."""

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
from runner.features.batch_size import automatic_batch_size
from runner.features.compile_choice import known_choice, should_compile
from runner.features.extractor import can_compile
from runner.models.transfer_model import TransferModel
from runner.portable.model import supported_precision
from runner.training import hosts, joining
from runner.utils import long_wait
from runner.utils.cluster import this_task
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.launch_environment import PROCESS_COUNT, join_seconds
from runner.utils.paths import cache_folder
from runner.utils.processes import cpu_count, parent_command
from runner.utils.redaction import error_line


def create_accelerator(experiment: Experiment) -> Accelerator:
    """Join the processes of this launch, and resolve the precision.

    Raises `UserError` as `init_processes` and `resolve_precision` do.
    """
    state = init_processes()
    long_wait.set_timeout(timedelta(minutes=experiment.train.timeout))
    precision = broadcast_object_list([resolve_precision(experiment.train.precision, state.device)])[0]
    # Without plugins, Accelerate would take these settings from environment variables.
    return Accelerator(
        cpu=state.device.type == "cpu",
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_plugin=TorchDynamoPlugin(backend="no"),
    )


def init_processes() -> PartialState:
    """Join the processes of this launch, and watch them from now on.

    Raises `UserError` if that fails, if fewer were started than requested, or if they run different code.
    """
    timeout = join_seconds()
    joining.take_ranks(timeout)
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1")
    # Without this, Accelerate takes several processes without GPUs for as many separate runs.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.cuda.is_available())
    try:
        state = joining.join(cpu, timeout)
        long_wait.set_timeout(long_wait.DEFAULT)
    except (ImportError, ValueError, RuntimeError) as error:
        if not several and not any(os.environ.get(name) for name in ("RANK", "LOCAL_RANK")):
            raise  # a process alone joins none: say, its GPU does not work
        raise joining.not_joined(error_line(error)) from error
    requested = requested_processes()
    if requested is not None and requested != state.num_processes and this_task() is not None:
        raise UserError(
            f"{requested} processes were expected, but {state.num_processes} started: the hosts have different numbers"
            " of GPUs; give the smallest number with -n."
        )
    if requested is not None and requested != state.num_processes:
        raise UserError(
            f"{requested} processes were requested, but {state.num_processes} started (accelerate launch --cpu does"
            f" that); use ./launch.sh train -n {requested}, or ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"
            f" --num_processes {requested}."
        )
    hosts.join_launch(state)
    if state.device.type == "cpu":
        _use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE") or state.num_processes))
    return state


def requested_processes() -> int | None:
    """How many processes the launch was asked for; None if that is unknown."""
    if count := os.environ.get(PROCESS_COUNT):
        return int(count)
    words = parent_command()
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            value = value or (words[index + 1] if index + 1 < len(words) else "")
            return int(value) if value.isdigit() else None
    if any("accelerate" in word for word in words):
        with suppress(Exception):  # Accelerate itself could not have read such a file either
            file = words[words.index("--config_file") + 1] if "--config_file" in words else None
            if file or Path(default_config_file).exists():
                return int(load_config_from_file(file).num_processes)
    return None


def _use_all_cores(processes: int) -> None:
    """Give each of a host's processes its share of the cores: by default, launchers give it one thread."""
    words = parent_command()
    chosen = any(word.startswith(("--num_cpu_threads_per_process", "--num-cpu-threads")) for word in words)
    if chosen or not any(
        name in word for word in words for name in ("accelerate", "torchrun", "torch.distributed")
    ):
        return
    with suppress(psutil.Error):
        if "OMP_NUM_THREADS" in psutil.Process(os.getppid()).environ():
            return
    torch.set_num_threads(max(1, cpu_count() // processes))


def resolve_precision(setting: str, device: torch.device) -> str:
    """What `train.precision` means on a device: no, fp16 or bf16. Raises `UserError` for fp16 on a CPU."""
    if setting == "fp16" and device.type == "cpu":
        raise UserError("train.precision=fp16 needs a GPU; on a CPU use bf16, no or auto.")
    if setting != "auto":
        return setting
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return supported_precision("bf16", device)


def resolve_auto_settings(
    experiment: Experiment,
    images: int,
    model: TransferModel,
    accelerator: Accelerator,
    terminal: Terminal,
    may_measure: bool = True,
) -> Experiment:
    """Replace "auto" in the settings of precision, inference batch and compilation; the same on every process.

    Args:
        experiment: To resolve.
        images: Number of all images of the dataset. Split and views must not matter: they share features.
        model: With its final frozen weights.
        accelerator: Device, precision and processes.
        terminal: Shows how the choice was made.
        may_measure: Try whether to compile. Otherwise compilation stays "auto" if no speed is known.
    """
    settings, cache = experiment.features, cache_folder(experiment.cache)
    batch_size = settings.batch_size
    if batch_size == "auto":
        batch_size = automatic_batch_size(model, accelerator, cache, terminal)
    compiled = settings.compile
    if compiled == "auto":
        if may_measure:
            compiled = should_compile(model, accelerator, batch_size, images, cache, terminal)
        elif (known := known_choice(model, accelerator, batch_size, images, cache)) is not None:
            compiled = known
    return dataclasses.replace(
        experiment,
        features=dataclasses.replace(settings, batch_size=batch_size, compile=compiled),
        train=dataclasses.replace(experiment.train, precision=accelerator.mixed_precision),
    )


def adapt_to_device(experiment: Experiment) -> Experiment:
    """An experiment that ran on another device, as it can be evaluated on this one.

    Without a GPU, fp16 becomes float32; without a compiler, the convolutions are not compiled.
    """
    if experiment.features.compile is True and not torch.cuda.is_available() and not can_compile():
        features = dataclasses.replace(experiment.features, compile=False)
        experiment = dataclasses.replace(experiment, features=features)
    if experiment.train.precision != "fp16" or torch.cuda.is_available():
        return experiment
    return dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, precision="no"))


def describe_device(accelerator: Accelerator) -> str:
    """Device and number of processes, such as `2 × NVIDIA H100`."""
    if accelerator.device.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    count = accelerator.num_processes
    return f"{count} × {name}" if count > 1 else name
