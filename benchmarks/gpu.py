"""Measures the runner on a machine with a GPU; each figure is left out, with the reason, where it cannot be measured.

    ./launch.sh bench gpu [--config caltech101-pooled --data.root DATA --model.weights FILE]

benchmarks/gpu.sh runs it after the tests on a machine without a network. Without settings, JPEG files are generated and
the weights are random: the rates are the same.

`matrix_tflops`: the GPU's fastest bf16 matrix product. `device_ips`: the frozen backbone on images in the GPU's memory,
`bare_ips`: on images in the host's; `file_ips`, `view_ips`: extraction from files, without and with augmentation.
`device_share`: the share of `matrix_tflops` that `device_ips` uses. `run_seconds`: 16 epochs with nothing cached.
`heads_speedup_pool3`, `_pool1`: 32 heads trained together against one by one. `block5_train_ips`: images/s of training
the last block of convolutions on features in memory, `block5_stored_ips` on those of the store.
"""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from benchmarks import features, throughput
from benchmarks.support.processes import run_part
from benchmarks.support.setups import prepare_quietly, spread
from benchmarks.support.timing import seconds
from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.config.tree import override
from runner.training import devices
from runner.utils.console import Terminal
from runner.utils.process_pool import map_in_processes
from runner.utils.processes import cpu_count

Figures = dict[str, Any]
CLASSES, PER_CLASS, SIZE = 16, 640, (300, 225)
"""Of generated images; width and height are in pixels."""
WITHOUT_DATA = ("--config", "caltech101-pooled", "--data.kind", "folder", "--model.weights", "null")
BLOCK5 = {
    "model.trainable": "features.24",
    "features.store": False,
    "train.epochs": 1,
    "schedule.kind": "constant",
}
DEVICE_BATCHES = 20


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line. The status is 1 if something could not be measured."""
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        folder = Path(name)
        words = [*argv] or [*WITHOUT_DATA, "--data.root", str(_write_images(folder / "images"))]
        experiment, _ = parse([*words, "--tracking.root", str(folder / "mlruns")], prog="runner bench gpu")
        accelerator = devices.create_accelerator(experiment)
        parts: dict[str, Callable[[], Figures]] = {
            "matrix": lambda: {"matrix_tflops": features.matmul_flops(accelerator.device) / 1e12},
            "device": partial(_device_rate, experiment, accelerator),
            "extraction": partial(
                features.extraction_rates, experiment, accelerator, folder / "rates", Terminal()
            ),
            "run": partial(_run, experiment, folder / "run"),
            "heads": partial(run_part, "benchmarks.heads", "speedups", (), folder / "heads"),
            "block5": partial(_block5_rate, experiment, accelerator, folder),
        }
        result: Figures = {"device": devices.describe_device(accelerator), "torch": torch.__version__}
        errors = {}
        for part, measure in parts.items():
            print(f"{part} …", flush=True)
            try:
                result |= measure()
            except Exception as error:  # the other figures are wanted all the same
                traceback.print_exc()
                errors[part] = f"{type(error).__name__}: {error}"[:500]
        if {"device_tflops", "matrix_tflops"} <= result.keys():
            result["device_share"] = result["device_tflops"] / result["matrix_tflops"]
        rounded = {
            name: round(value, 4) if isinstance(value, float) else value for name, value in result.items()
        }
        print(json.dumps({**rounded, "errors": errors}))
    return 1 if errors else 0


def _device_rate(experiment: Experiment, accelerator: Accelerator) -> Figures:
    """Of the frozen backbone on images that are in the device's memory."""
    setup = prepare_quietly(experiment, accelerator)
    side = experiment.augment.input_size
    images = torch.randint(0, 256, (setup.batch_size, 3, side, side), dtype=torch.uint8)
    images = images.to(accelerator.device)

    def run() -> None:
        for _ in range(DEVICE_BATCHES):
            values = setup.features.extractor(images)
        values.flatten()[0].item()

    run()
    rate = DEVICE_BATCHES * setup.batch_size / min(seconds(run) for _ in range(3))
    return {"device_ips": rate, "device_tflops": rate * features.image_flops(setup, images[:1]) / 1e12}


def _run(experiment: Experiment, folder: Path) -> Figures:
    measured = features.cold_run(experiment, folder)
    names = (
        "all_images",
        "all_seconds",
        "cold_seconds",
        "study_fit_seconds",
        "head_epoch_seconds",
        "cold_val_top1",
    )
    return {"run_seconds": measured["cold_seconds"], **{name: measured[name] for name in names}}


def _block5_rate(experiment: Experiment, accelerator: Accelerator, folder: Path) -> Figures:
    setup = prepare_quietly(override(experiment, BLOCK5), accelerator)
    entries = spread(setup.manifest.select("train"), 10 * setup.batch_size)
    loops = throughput.Loops(setup, entries, folder / "block5")
    loops.warm_up()
    return {
        "block5_train_ips": loops.training(loops.in_memory),
        "block5_stored_ips": loops.training(loops.stored),
    }


def _write_images(root: Path) -> Path:
    """Smooth random JPEG files in class folders."""
    for _ in map_in_processes(partial(_write_class, root), range(CLASSES), cpu_count()):
        pass
    return root


def _write_class(root: Path, label: int) -> None:
    folder, random = root / f"class {label:02}", np.random.default_rng(label)
    folder.mkdir(parents=True)
    for number in range(PER_CLASS):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8))
        coarse.resize(SIZE, Image.Resampling.BICUBIC).save(folder / f"{number:04}.jpg", quality=85)
