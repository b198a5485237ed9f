"""`--dry-run`: what a command would do, without doing it."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from accelerate import Accelerator

from runner.experiment import Experiment
from runner.files import free_bytes
from runner.run import prepare
from runner.settings import Options
from runner.terminal import Terminal, duration, size
from runner.views import CLEAN, view_of


def tell(experiment: Experiment, options: Options, accelerator: Accelerator, terminal: Terminal) -> None:
    """Say which images, how many features, how long and how much disk.

    The time is that of the frozen part of the network, measured on two chunks here; what trains comes on top.
    Nothing is trained, computed ahead or recorded; the scan of the images is kept.
    """
    ready = prepare(experiment, accelerator, terminal)
    features, manifest = ready.features, ready.manifest
    epochs = experiment.fit.epochs
    views = sorted({view_of(epoch, experiment.views.train) for epoch in range(epochs)})
    wanted = [("train", view) for view in views] + [("val", CLEAN), ("test", CLEAN)]
    missing = sum(features.missing(split, view) for split, view in wanted)
    shape, dtype = features.row_shape()
    row = shape.numel() * dtype.itemsize
    passes = missing
    if not features.stored:
        rounds = options.repeat * epochs
        passes = rounds * (len(manifest.select("train")) + len(manifest.select("val")))
        passes += options.repeat * len(manifest.select("test"))
    rate = _rate(ready.chunk, experiment.views.crop, features.prefix) * accelerator.num_processes
    checkpoints = sum(value.nbytes for part in (0, 0, 1) for value in ready.network.parts()[part].values())
    cache = Path(experiment.cache).expanduser()
    facts = [
        ("images", ", ".join(f"{len(manifest.select(s)):,} {s}" for s in ("train", "val", "test"))),
        ("classes", f"{len(manifest.classes)}"),
        ("epochs", f"at most {epochs}, of {options.repeat} fit seed{'s' * (options.repeat > 1)}"),
    ]
    if features.stored:
        facts += [
            ("views", f"{len(views)} of each training image, 1 of the others"),
            (
                "store",
                f"{missing:,} rows to compute at {size(row)}: {size(missing * row)} in {cache / 'features'}",
            ),
        ]
    if ready.network.cut:
        facts.append(
            (
                "time",
                f"about {duration(passes / rate)} for the frozen part, at {rate:,.1f} images/s; then the fit",
            )
        )
    else:
        facts.append(("time", "not estimated: everything trains"))
    facts += [
        ("disk", f"{size(options.repeat * checkpoints)} of checkpoints; {size(free_bytes(cache))} free"),
        ("device", f"{accelerator.device}, precision {ready.experiment.fit.precision}"),
    ]
    terminal.facts(f"{experiment.name}: nothing was run", facts)


def _rate(chunk: int, crop: int, prefix) -> float:  # type: ignore[no-untyped-def]
    images = torch.zeros(chunk, 3, crop, crop, dtype=torch.uint8)
    prefix(images).sum().item()
    began = time.perf_counter()
    prefix(images).sum().item()
    return chunk / (time.perf_counter() - began)
