"""Measures the speed of predictions from files, and the time to the first one.

    ./launch.sh bench predict [IMAGE|FOLDER|PATTERN…] [--model RUN|NAME@ALIAS|PATH] [--images 500]

`bare_ips`: the model on images in memory, in batches and precision of `predict`. `predict_ips`: from files to the most
probable classes. `predict_ratio`: the median of the rounds' ratios. Both are measured in turns in one process.
`first_seconds`: a process that predicts one image, from start to exit; the median of `first_runs`.
Without IMAGE, JPEG files of 300 × 225 pixels are generated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.support.timing import seconds
from runner.cli.options import add_model_options, positive_integer
from runner.portable.classifier import BATCH_SIZE
from runner.serving.load import load_model
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.image_paths import find_images

ROUNDS = 3
FIRST_RUNS = 5
GENERATED_IMAGES = 50


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parser = CommandLineParser(
        prog="runner bench predict", description="Measure the speed of predictions from files."
    )
    parser.add_argument("paths", metavar="IMAGE", nargs="*", help="image file, folder or pattern")
    parser.add_argument(
        "--images", type=positive_integer, default=500, help="number of predictions; default: 500"
    )
    add_model_options(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        files = find_images(options.paths) if options.paths else _generate_images(Path(folder))
        paths = list(itertools.islice(itertools.cycle(files), options.images))
        print(json.dumps(_measure(paths, options, Terminal())))
    return 0


def _measure(paths: list[Path], options: argparse.Namespace, terminal: Terminal) -> dict[str, object]:
    # First of all, so that an unknown model is refused in one sentence.
    model = load_model(options.model, options.tracking)
    first = [seconds(lambda: _predict_in_process(paths[0], options)) for _ in range(FIRST_RUNS)]
    full_batch = next(iter(model.decoded_batches(paths[:BATCH_SIZE] * BATCH_SIZE)))
    images = torch.stack(full_batch.images)
    batches = max(1, len(paths) // len(images))
    model.classifier.logits(images)  # the first batch is slower
    bare, predict = [], []
    for number in range(ROUNDS):
        taken = seconds(lambda: [model.classifier.logits(images) for _ in range(batches)])
        bare.append(batches * len(images) / taken)
        predict.append(len(paths) / seconds(lambda: model.predict(paths)))
        terminal.line(
            f"round {number + 1} of {ROUNDS}: bare {bare[-1]:.2f}, predict {predict[-1]:.2f} images/s"
        )
    ratios = [from_files / in_memory for from_files, in_memory in zip(predict, bare, strict=True)]
    return {
        "bare_ips": round(statistics.median(bare), 3),
        "predict_ips": round(statistics.median(predict), 3),
        "predict_ratio": round(statistics.median(ratios), 4),
        "first_seconds": round(statistics.median(first), 2),
        "images": len(paths),
        "rounds": ROUNDS,
        "first_runs": FIRST_RUNS,
        "batch_size": BATCH_SIZE,
        "precision": model.classifier.precision,
        "model": model.source,
    }


def _predict_in_process(path: Path, options: argparse.Namespace) -> None:
    """Predict one image with the command, in a new process."""
    arguments = ["predict", str(path), "--tracking.root", options.tracking, "--json"]
    if options.model:
        arguments += ["--model", options.model]
    subprocess.run([sys.executable, "-m", "runner.cli.main", *arguments], check=True, capture_output=True)


def _generate_images(folder: Path) -> list[Path]:
    """Write JPEG files of smooth noise."""
    generator = np.random.default_rng(0)
    paths = [folder / f"{number:03}.jpg" for number in range(GENERATED_IMAGES)]
    for path in paths:
        coarse = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        coarse.resize((300, 225), Image.Resampling.BICUBIC).save(path, quality=90)
    return paths
