"""`--dry-run`: what a command would do, without doing it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator

from runner.config.parser import Options
from runner.config.schema import Experiment
from runner.models.dropout import set_dropout_batch
from runner.training.run import wanted
from runner.training.setup import Setup, prepare
from runner.utils.atomic_files import free_bytes
from runner.utils.console import Terminal, format_bytes, format_duration


def tell(experiment: Experiment, options: Options, accelerator: Accelerator, terminal: Terminal) -> None:
    """Say which images, how many features, how long and how much disk.

    The time is extrapolated from a chunk through the frozen part and a training step, both measured here.
    Nothing is trained, computed ahead or recorded; the scan of the images is kept.
    """
    ready = prepare(experiment, accelerator, terminal)
    features, manifest = ready.features, ready.manifest
    epochs = experiment.train.epochs
    splits = wanted(experiment)
    views = sum(split == "train" for split, _ in splits)
    demand = features.missing(splits)
    passes = demand.images
    if not features.stored:
        rounds = options.repeat * epochs
        passes = rounds * (len(manifest.select("train")) + len(manifest.select("val")))
        passes += options.repeat * len(manifest.select("test"))
    rate = _prefix_rate(ready, crop=experiment.augment.crop) * accelerator.num_processes
    steps = options.repeat * epochs * math.ceil(len(manifest.select("train")) / experiment.train.batch_size)
    seconds = (passes / rate if ready.network.split_index else 0) + steps * _step_seconds(ready, accelerator)
    trainable, frozen = (
        sum(tensor.nbytes for tensor in state.values())
        for state in (ready.network.trainable_state(), ready.network.frozen_state())
    )
    checkpoints = 2 * trainable + frozen  # best, last, and what is frozen
    if experiment.tracking.model:
        checkpoints += trainable + frozen
    cache = Path(experiment.cache).expanduser()
    facts = [
        ("data", f"{experiment.data.kind}: {manifest.root}"),
        ("network", f"{experiment.model.arch}, {experiment.model.head} head"),
        ("weights", experiment.model.weights or "RANDOM"),
        ("images", ", ".join(f"{len(manifest.select(s)):,} {s}" for s in ("train", "val", "test"))),
        ("classes", f"{len(manifest.classes)}"),
        ("epochs", f"at most {epochs}, of {options.repeat} fit seed{'s' * (options.repeat > 1)}"),
    ]
    if features.stored:
        facts += [
            ("views", f"{views} of each training image, 1 of the others"),
            (
                "store",
                f"{demand.images:,} images and views to compute; {format_bytes(demand.bytes)} to keep in {cache / 'features'}",
            ),
        ]
    if ready.network.split_index:
        frozen = f", of which {format_duration(passes / rate)} for the frozen part at {rate:,.1f} images/s"
    else:
        frozen = ", without validation: everything trains"
    facts.append(("time", f"about {format_duration(seconds)}{frozen}"))
    facts += [
        ("disk", f"{format_bytes(options.repeat * checkpoints)} of checkpoints; {format_bytes(free_bytes(cache))} free"),
        ("device", f"{accelerator.device}, precision {ready.experiment.train.precision}"),
    ]
    terminal.key_values(f"{experiment.name}: nothing was run", facts)


def _prefix_rate(ready: Setup, crop: int) -> float:
    """Images/s of one process through the frozen part."""
    images = torch.zeros(ready.chunk, 3, crop, crop, dtype=torch.uint8)
    return ready.chunk / _seconds(lambda: ready.features.extractor(images).sum().item())


def _step_seconds(ready: Setup, accelerator: Accelerator) -> float:
    """Seconds of one forward and backward pass of what trains, on this process's share of a batch."""
    network = ready.network
    count = max(1, ready.experiment.train.batch_size // accelerator.num_processes)
    shape, dtype = ready.features.feature_shape()
    rows = torch.zeros(count, *shape, dtype=dtype, device=accelerator.device)

    def step() -> None:
        set_dropout_batch(network.modules(), 0, slice(0, count), count)
        with accelerator.autocast():
            loss = network(rows, start=network.split_index).sum()
        loss.backward()
        loss.item()
        network.zero_grad()

    network.train()
    return _seconds(step)


def _seconds(work: Callable[[], object]) -> float:
    """Time of the second call: the first one warms up."""
    work()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
