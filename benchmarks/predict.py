"""How fast are predictions from files, and how soon is the first one there?

    ./launch.sh bench predict [IMAGE|FOLDER|GLOB…] [--model RUN|NAME@ALIAS|CHECKPOINT] [--images 500]

In one process and one run, in turns: `bare_ips`, the network on views in memory, in the same chunks and precision;
`predict_ips`, from files to the likeliest classes; `predict_ratio`, the median of the rounds' ratios.
`first_seconds`: a process that is started to predict one image, from start to end, median of `first_runs`.
Without images JPEG files of 300 × 225 pixels are made.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROUNDS = 3
FIRST_RUNS = 5


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object."""
    from runner.cli.model_options import add_model_options, positive_integer
    from runner.utils.command_line import CommandLineParser
    from runner.utils.console import Terminal
    from runner.utils.image_paths import find_images

    parser = CommandLineParser(prog="runner bench predict")
    parser.add_argument("paths", metavar="IMAGE", nargs="*")
    parser.add_argument(
        "--images", type=positive_integer, default=500, help="how many to predict; default: 500"
    )
    add_model_options(parser)
    asked = parser.parse_args(argv)
    terminal = Terminal()
    with tempfile.TemporaryDirectory() as folder:
        given = find_images(asked.paths) if asked.paths else _made(Path(folder), 50)
        paths = list(itertools.islice(itertools.cycle(given), asked.images))
        print(json.dumps(_measure(paths, asked, terminal)))
    return 0


def _measure(paths: list[Path], asked: argparse.Namespace, terminal: object) -> dict[str, object]:
    import torch

    from runner.portable.classifier import BATCH_SIZE
    from runner.serving.load import load_model

    first = [_first(paths[0], asked) for _ in range(FIRST_RUNS)]
    model = load_model(asked.model, asked.tracking)
    images = torch.stack(next(iter(model.decoded_batches(paths[:BATCH_SIZE] * BATCH_SIZE))).images)
    chunks = max(1, len(paths) // len(images))
    model.classifier.logits(images)
    bare, whole = [], []
    for number in range(ROUNDS):
        began = time.perf_counter()
        for _ in range(chunks):
            model.classifier.logits(images)
        bare.append(chunks * len(images) / (time.perf_counter() - began))
        began = time.perf_counter()
        said = model.predict(paths)
        whole.append(len(said) / (time.perf_counter() - began))
        terminal.line(  # type: ignore[attr-defined]
            f"round {number + 1} of {ROUNDS}: bare {bare[-1]:.2f}, predict {whole[-1]:.2f} images/s"
        )
    return {
        "bare_ips": round(statistics.median(bare), 3),
        "predict_ips": round(statistics.median(whole), 3),
        "predict_ratio": round(statistics.median(w / b for w, b in zip(whole, bare, strict=True)), 4),
        "first_seconds": round(statistics.median(first), 2),
        "images": len(paths),
        "rounds": ROUNDS,
        "first_runs": FIRST_RUNS,
        "chunk": BATCH_SIZE,
        "precision": model.classifier.precision,
        "model": model.source,
    }


def _first(path: Path, asked: argparse.Namespace) -> float:
    words = ["predict", str(path), "--tracking.root", asked.tracking, "--json"]
    if asked.model:
        words += ["--model", asked.model]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "runner.cli.main", *words], check=True, capture_output=True)
    return time.perf_counter() - began


def _made(folder: Path, count: int) -> list[Path]:
    """Smooth noise as JPEG files."""
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    paths = []
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        paths.append(folder / f"{number:03}.jpg")
        coarse.resize((300, 225), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths
