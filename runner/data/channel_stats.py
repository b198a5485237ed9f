"""Mean and standard deviation of the color channels of a set of images."""

from __future__ import annotations

import json
from pathlib import Path

import PIL
import torch
import torchvision

from runner.config.fields import Triple
from runner.config.schema import Normalization
from runner.data.images import Images
from runner.data.loader import ImageLoader
from runner.data.transforms import EVALUATION_VIEW
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.hashing import digest

BATCH_SIZE = 64
VERSION = [2, PIL.__version__, torchvision.__version__]
"""Part of the cache key. Raise the number when decoding or the definition changes."""


def channel_statistics(
    entries: Images, loader: ImageLoader, cache: Path, terminal: Terminal
) -> Normalization:
    """Mean and std of the RGB channels of the evaluation view, on the scale 0 to 1.

    The mean over images of each image's channel mean, and of its channel's population standard deviation: the
    definition of the baseline report (row 2). Cached for the same images and transform.
    """
    key = digest(
        sorted(row[-1] for block in entries.blocks() for row in block),
        loader.transform.recipe(EVALUATION_VIEW),
        VERSION,
    )
    file = cache / "statistics" / f"{key}.json"
    if (cached := _read_cached(file)) is not None:
        return cached
    indices = range(len(entries))
    batches = [indices[start : start + BATCH_SIZE] for start in range(0, len(entries), BATCH_SIZE)]
    means = torch.zeros(3, dtype=torch.float64)
    stds = torch.zeros(3, dtype=torch.float64)
    with terminal.progress("channel statistics", len(entries)) as advance:
        for images in loader.batches(entries, EVALUATION_VIEW, batches):
            std, mean = torch.std_mean(images.float() / 255, dim=(2, 3), correction=0)
            means += mean.sum(0, dtype=torch.float64)
            stds += std.sum(0, dtype=torch.float64)
            advance(len(images))
    result = Normalization(_rounded(means / len(entries)), _rounded(stds / len(entries)))
    write_text(file, statistics_to_json(result))
    return result


def _rounded(values: torch.Tensor) -> Triple:
    """Rounded, so that thread counts and vector widths do not change what is derived from it."""
    red, green, blue = (round(value, 6) for value in values.tolist())
    return red, green, blue


def statistics_to_json(statistics: Normalization) -> str:
    """The content of the cache file, with a digest to detect damaged digits."""
    numbers = {"mean": list(statistics.mean), "std": list(statistics.std)}
    return json.dumps({**numbers, "digest": digest(numbers)})


def _read_cached(file: Path) -> Normalization | None:
    """The cached statistics; None if there are none, or if the file is damaged."""
    try:
        content = json.loads(file.read_text())
        mean, std = content["mean"], content["std"]
        undamaged = content["digest"] == digest({"mean": mean, "std": std})
        in_range = all(type(number) is float and 0 <= number <= 1 for number in (*mean, *std))
        if undamaged and in_range and len(mean) == len(std) == 3:
            return Normalization(tuple(mean), tuple(std))
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None
