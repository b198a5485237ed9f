"""Measures how fast the frozen part of networks runs: from image files, against the same network on images in memory.

    ./launch.sh bench backbones --config caltech101-pooled --data.root DATA
    ./launch.sh bench backbones --arch timm/tf_efficientnet_lite0 vgg16 --config caltech101-pooled --data.root DATA

One member of each family, or the architectures that --arch names, with random weights and images of the size that their
weights were trained with, not compiled unless --features.compile true says so. Both ways are measured in turns, in the
same precision and batch; figures are medians of the rounds. For each architecture:

`bare_ips`: images/s of the frozen part on images in memory.
`file_ips`: images/s of extraction from files, with decoding and storing.
`ratio`: median of the rounds' ratios of the two.
`decode_ips`: images/s of decoding alone, on all cores.
`ratio_limit`: the ratio if decoding took its time from the network, and nothing else took any.
`row_bytes`: bytes of an image's stored features that the head reads.

`slowest_ratio` is the smallest of the ratios.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.support.setups import prepare_quietly, spread, with_cache_folder, with_images
from benchmarks.support.timing import seconds
from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.config.tree import override
from runner.data.images import Images
from runner.data.transforms import EVALUATION_VIEW
from runner.training import devices
from runner.training.setup import Setup
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal

FAMILIES = (
    "vgg16",
    "resnet50",
    "resnext50_32x4d",
    "densenet121",
    "efficientnet_b0",
    "timm/tf_efficientnet_lite0",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "convnext_tiny",
    "vit_b_32",
    "timm/deit_tiny_patch16_224",
    "swin_t",
    "maxvit_t",
    "timm/vit_small_patch14_dinov2",
)
ROUNDS = 3
BATCHES = 2
FILE_BATCHES = 6


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    parser = CommandLineParser(
        prog="runner bench backbones", description=__doc__, add_help="--help" in argv or "-h" in argv
    )
    parser.add_argument(
        "--arch", nargs="+", default=FAMILIES, metavar="NAME", help="architectures to measure"
    )
    options, words = parser.parse_known_args(list(argv))
    if not any(word.startswith("--features.compile") for word in words):
        words += ["--features.compile", "false"]
    experiment, _ = parse([*words, "--model.weights", "null"], prog="runner bench backbones")
    terminal, measured = Terminal(), {}
    for arch in options.arch:
        measured[arch] = rates(override(experiment, {"model.arch": arch}))
        figures = ", ".join(f"{name} {value:g}" for name, value in measured[arch].items())
        terminal.line(f"{arch}: {figures}")
    slowest = min(each["ratio"] for each in measured.values())
    print(json.dumps({"slowest_ratio": slowest, "backbones": measured}))
    return 0


def rates(experiment: Experiment) -> dict[str, Any]:
    """The figures of an experiment's backbone."""
    accelerator = devices.create_accelerator(experiment)
    setup = prepare_quietly(experiment, accelerator)
    extractor, size = setup.features.extractor, experiment.augment.input_size
    images = torch.randint(0, 256, (setup.batch_size, 3, size, size), dtype=torch.uint8)
    shape, dtype = extractor.stage_shapes(images[:1])[-1]
    entries = spread(setup.manifest.select("train"), FILE_BATCHES * setup.batch_size)

    def bare() -> None:
        for _ in range(BATCHES):
            _wait_for(extractor(images), accelerator)

    _wait_for(extractor(images), accelerator)  # compiles, and allocates
    bare_rates, file_rates, decode_rates = [], [], []
    for _ in range(ROUNDS):
        bare_rates.append(BATCHES * setup.batch_size / seconds(bare))
        with tempfile.TemporaryDirectory(prefix="runner-bench-") as folder:
            features = with_cache_folder(with_images(setup.features, entries), Path(folder))
            took = seconds(lambda cache=features: cache.get("train", EVALUATION_VIEW))  # type: ignore[misc]
            file_rates.append(len(entries) / took)
        decode_rates.append(len(entries) / seconds(lambda: _decode(setup, entries)))
    bare_ips, decode_ips = statistics.median(bare_rates), statistics.median(decode_rates)
    ratios = [file / plain for file, plain in zip(file_rates, bare_rates, strict=True)]
    return {
        "bare_ips": round(bare_ips, 2),
        "file_ips": round(statistics.median(file_rates), 2),
        "ratio": round(statistics.median(ratios), 3),
        "decode_ips": round(decode_ips, 2),
        "ratio_limit": round(decode_ips / (decode_ips + bare_ips), 3),
        "row_bytes": shape.numel() * dtype.itemsize,
    }


def _decode(setup: Setup, entries: Images) -> None:
    """Decode images and drop them."""
    starts = range(0, len(entries), setup.batch_size)
    batches = [range(start, min(start + setup.batch_size, len(entries))) for start in starts]
    for _ in setup.loader.batches(entries, EVALUATION_VIEW, batches):
        pass


def _wait_for(values: torch.Tensor, accelerator: Accelerator) -> None:
    """Wait until a GPU has computed values."""
    if accelerator.device.type == "cuda":
        values[:1].cpu()
