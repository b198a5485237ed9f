"""Channel statistics: what the report normalises its images with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import PIL
import torch
import torchvision

from runner.config.schema import Normalisation, Triple
from runner.data.loader import Loader
from runner.data.manifest import Entry
from runner.data.transforms import CLEAN
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.hashing import digest

BATCH = 64
STATISTICS_VERSION = [2, PIL.__version__, torchvision.__version__]
"""Part of what is kept: raise the number when decoding or the definition changes."""


def statistics(entries: Sequence[Entry], loader: Loader, cache: Path, terminal: Terminal) -> Normalisation:
    """Mean and std of the RGB channels, as the report defines them (baseline, row 2).

    The mean over images of each image's channel mean, and of its channel's (population) standard deviation,
    of the evaluation view on the scale 0 to 1. Kept in `cache` for the same images and view.
    """
    memory = (
        cache
        / "statistics"
        / f"{digest(sorted(e.digest for e in entries), loader.renderer.recipe(CLEAN), STATISTICS_VERSION)}.json"
    )
    if (known := _recall(memory)) is not None:
        return known
    places = range(len(entries))
    batches = [places[start : start + BATCH] for start in range(0, len(entries), BATCH)]
    means = torch.zeros(3, dtype=torch.float64)
    stds = torch.zeros(3, dtype=torch.float64)
    with terminal.progress("channel statistics", len(entries)) as advance:
        for views in loader.batches(entries, CLEAN, batches):
            std, mean = torch.std_mean(views.float() / 255, dim=(2, 3), correction=0)
            means += mean.sum(0, dtype=torch.float64)
            stds += std.sum(0, dtype=torch.float64)
            advance(len(views))
    found = Normalisation(_triple(means / len(entries)), _triple(stds / len(entries)))
    write_text(memory, sealed(found))
    return found


def _triple(values: torch.Tensor) -> Triple:
    """Rounded, so that threads and vector widths leave no trace in what is derived from it."""
    red, green, blue = (round(value, 6) for value in values.tolist())
    return red, green, blue


def sealed(found: Normalisation) -> str:
    """What is kept: with a digest, since another digit would be a number like any other."""
    numbers = {"mean": list(found.mean), "std": list(found.std)}
    return json.dumps({**numbers, "digest": digest(numbers)})


def _recall(memory: Path) -> Normalisation | None:
    try:
        kept = json.loads(memory.read_text())
        mean, std = kept["mean"], kept["std"]
        whole = kept["digest"] == digest({"mean": mean, "std": std})
        numbers = all(type(each) is float and 0 <= each <= 1 for each in (*mean, *std))
        if whole and numbers and len(mean) == len(std) == 3:
            return Normalisation(tuple(mean), tuple(std))
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        pass  # never computed, or damaged: compute it again
    return None
