"""Measures what cached features gain: speed of extraction, against the machine's limit and against the naive loop.

    ./launch.sh bench features --config caltech101-pooled --data.root DATA --model.weights FILE

The naive loop (support/naive_loop.py) runs the whole network in every step of every epoch. Its steps are timed and
`naive_run_seconds` is calculated from them, because a whole run would take hours. Everything else is executed:
extraction from JPEG files, a run of 16 epochs on all images with empty caches of features and compiled code, and the
training of 20 trials. `study_speedup_fresh` and `fresh_study_seconds` multiply the measured rate of augmented views
by their number.

Alternatives are measured in turns within one run; figures are medians.

`bare_ratio`: extraction from files ÷ the frozen backbone on images in memory.
`limit_ratio`: extraction from files ÷ the rate at which the machine's fastest bf16 matrix product would do it;
`cold_limit_ratio`: the same for the extraction of all images.
`single_run_speedup`, `study_speedup_clean`: a run, and 20 trials, without augmentation, against the naive loop.
`scaling_2`: two processes of half the threads ÷ one process.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.support.naive_loop import naive_rates
from benchmarks.support.processes import run_part, write_result
from benchmarks.support.setups import prepare_quietly, spread, train_quietly, with_cache_folder, with_images
from benchmarks.support.timing import seconds
from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.config.tree import override
from runner.data.transforms import EVALUATION_VIEW
from runner.features.cache import FeatureCache
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore
from runner.models.transfer_model import TransferModel
from runner.training import devices
from runner.training.fit_data import LabeledFeatures
from runner.training.setup import Setup
from runner.utils.console import Terminal

ROUNDS = 3
MEMORY_BATCHES = 10
FILE_BATCHES = 20
SCALING_BATCHES = 10
NAIVE_BATCHES = 4
EPOCHS = 16
TRIALS = 20
VIEWS = 16
AUGMENTED_VIEW = 0


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line."""
    experiment, _ = parse(argv, prog="runner bench features")
    terminal = Terminal()
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as name:
        folder = Path(name)
        accelerator = devices.create_accelerator(experiment)
        measured = extraction_rates(experiment, accelerator, folder, terminal)
        naive = naive_rates(experiment, NAIVE_BATCHES)
        terminal.line(
            "naive loop: " + ", ".join(f"{name} {rate:.2f} images/s" for name, rate in naive.items())
        )
        measured |= naive
        measured |= _scaling(argv, folder, terminal)
        terminal.line(f"a run with empty caches on all images, then {TRIALS} trials …")
        measured |= run_part("benchmarks.features", "cold", argv, folder / "cold")
    print(json.dumps(_figures(measured) | {"device": devices.describe_device(accelerator)}))
    return 0


def _figures(m: dict[str, Any]) -> dict[str, Any]:
    """The figures calculated from the measurements, then the measurements."""
    naive = EPOCHS * (m["train_images"] / m["naive_train_ips"] + m["val_images"] / m["naive_val_ips"])
    study = m["cold_seconds"] + m["study_fit_seconds"] * (TRIALS - 1) / TRIALS
    fresh = (
        VIEWS * m["train_images"] / m["view_ips"]
        + m["val_images"] / m["file_ips"]
        + m["compile_seconds"]
        + m["study_fit_seconds"]
    )
    figures = {
        "bare_ratio": m["bare_ratio"],
        "limit_ratio": m["file_ips"] / m["limit_ips"],
        "cold_limit_ratio": m["all_images"] / m["all_seconds"] / m["limit_ips"],
        "single_run_speedup": naive / m["cold_seconds"],
        "study_speedup_clean": TRIALS * naive / study,
        "study_speedup_fresh": TRIALS * naive / fresh,
        "scaling_2": m["scaling_2"],
        "peak_mib": m["peak_mib"],
        "naive_run_seconds": naive,
        "fresh_study_seconds": fresh,
    }
    return {
        name: round(value, 4) if isinstance(value, float) else value for name, value in (figures | m).items()
    }


# Extraction


def extraction_rates(
    experiment: Experiment, accelerator: Accelerator, folder: Path, terminal: Terminal
) -> dict[str, Any]:
    """Images/s of the machine's limit, of the frozen backbone in memory, and of extraction from files, in turns."""
    setup = prepare_quietly(experiment, accelerator)
    extractor, batch_size = setup.features.extractor, setup.batch_size
    images = torch.randint(0, 256, (batch_size, *_image_shape(experiment)), dtype=torch.uint8)
    first_batch = seconds(lambda: _wait_for(extractor(images)))

    def bare() -> None:
        for _ in range(MEMORY_BATCHES):
            _wait_for(extractor(images))

    rates: dict[str, list[float]] = {"limit": [], "bare": [], "file": [], "view": []}
    for number in range(ROUNDS):
        rates["limit"].append(matmul_flops(accelerator.device) / image_flops(setup, images[:1]))
        rates["bare"].append(MEMORY_BATCHES * batch_size / seconds(bare))
        for name, view in (("file", EVALUATION_VIEW), ("view", AUGMENTED_VIEW)):
            sample = _empty_sample(setup, FILE_BATCHES, folder / f"{name} {number}")
            rates[name].append(_extraction_rate(sample, view))
        latest = ", ".join(f"{name} {values[-1]:.2f} images/s" for name, values in rates.items())
        terminal.line(f"round {number + 1}: {latest}")
    medians = {f"{name}_ips": statistics.median(values) for name, values in rates.items()}
    ratios = [file / bare for file, bare in zip(rates["file"], rates["bare"], strict=True)]
    return {
        **medians,
        "bare_ratio": statistics.median(ratios),
        "compile_seconds": max(0.0, first_batch - batch_size / medians["bare_ips"]),
        "compiled": extractor.compiled,
        "precision": accelerator.mixed_precision,
        **_side_costs(setup, folder / "costs"),
    }


def _side_costs(setup: Setup, folder: Path) -> dict[str, float]:
    """Milliseconds of one core per image besides the network: decoding, and writing to the store."""
    entries = setup.manifest.select("train")[:64]
    loader = dataclasses.replace(setup.loader, workers=0)
    costs = {}
    for name, view in (("clean_ms", EVALUATION_VIEW), ("augmented_ms", AUGMENTED_VIEW)):
        batches = loader.batches(entries, view, [range(len(entries))])
        costs[name] = 1000 * seconds(lambda images=batches: list(images)) / len(entries)  # type: ignore[misc]
    image = torch.zeros(1, *_image_shape(setup.experiment), dtype=torch.uint8)
    shape, dtype = setup.features.extractor.stage_shapes(image)[0]
    features = torch.zeros(256, *shape, dtype=dtype)
    keys = FeatureKeys(
        np.random.default_rng(0).integers(256, size=(256, 20), dtype=np.uint8), EVALUATION_VIEW
    )
    store = ShardStore(folder, {})
    costs["write_ms"] = 1000 * seconds(lambda: store.write(keys, features)) / len(keys)
    return costs


def _empty_sample(setup: Setup, batches: int, folder: Path) -> FeatureCache:
    """Features of so many batches of training images, with an empty cache."""
    entries = spread(setup.manifest.select("train"), batches * setup.batch_size)
    return with_cache_folder(with_images(setup.features, entries), folder)


def _extraction_rate(features: FeatureCache, view: int) -> float:
    """Images/s of extracting the training split."""
    return len(features.manifest.entries) / seconds(lambda: features.get("train", view))


def matmul_flops(device: torch.device) -> float:
    """FLOP/s of the fastest bf16 product of two square matrices of 2048 or 4096; on a GPU also of 8192."""
    fastest = 0.0
    for side in (2048, 4096, *([8192] if device.type == "cuda" else [])):
        first, second = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
        _wait_for(first @ second)
        times = [seconds(lambda a=first, b=second: _wait_for(a @ b)) for _ in range(3)]  # type: ignore[misc]
        fastest = max(fastest, 2 * side**3 / min(times))
    return fastest


def image_flops(setup: Setup, image: Tensor) -> float:
    """FLOP of one image in the convolutions: 30.7 G for VGG16 at 224 px."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stage = setup.model.frozen_stages[0]
        setup.model.run(image.to(setup.features.accelerator.device), stage.start, stage.stop)
    return float(counter.get_total_flops())


def _image_shape(experiment: Experiment) -> tuple[int, int, int]:
    return (3, experiment.augment.input_size, experiment.augment.input_size)


def _wait_for(values: Tensor) -> None:
    """Return when `values` are computed; a GPU computes asynchronously."""
    values.flatten()[0].item()


# Parts in new processes


def _scaling(argv: Sequence[str], folder: Path, terminal: Terminal) -> dict[str, float]:
    """Rate of extraction with two processes of half the threads ÷ with one process, in turns."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2):
        for processes in (1, 2):
            part_folder = folder / f"scaling-{turn}-{processes}"
            result = run_part("benchmarks.features", "scaling", argv, part_folder, processes)
            rates[processes] += result["rates"]
            terminal.line(f"{processes} process(es): {statistics.median(rates[processes]):.2f} images/s")
    return {"scaling_2": statistics.median(rates[2]) / statistics.median(rates[1])}


def _scaling_part(experiment: Experiment, folder: Path) -> dict[str, Any]:
    accelerator = devices.create_accelerator(experiment)
    setup = prepare_quietly(experiment, accelerator)
    _wait_for(setup.features.extractor(torch.zeros(1, *_image_shape(experiment), dtype=torch.uint8)))
    rates = []
    for number in range(2):
        sample = _empty_sample(setup, SCALING_BATCHES, folder / f"features {number}")
        accelerator.wait_for_everyone()
        rates.append(_extraction_rate(sample, EVALUATION_VIEW))
    return {"rates": rates}


def cold_run(experiment: Experiment, folder: Path) -> dict[str, Any]:
    """A run without augmentation and with empty caches, the features of the test split, and 20 trials."""
    accelerator = devices.create_accelerator(experiment)
    start = time.perf_counter()
    setup = prepare_quietly(experiment, accelerator)
    setup = dataclasses.replace(setup, features=with_cache_folder(setup.features, folder / "features"))
    top1 = _train_trial(setup, 0)
    cold_seconds = time.perf_counter() - start
    setup.features.get("test", EVALUATION_VIEW)
    start = time.perf_counter()
    scores = [_train_trial(setup, trial) for trial in range(TRIALS)]
    fit_seconds = time.perf_counter() - start
    counts = {split: len(setup.manifest.select(split)) for split in ("train", "val", "test")}
    return {
        **{f"{split}_images": count for split, count in counts.items()},
        "all_images": sum(counts.values()),
        "all_seconds": setup.features.stats.compute_seconds,
        "cold_seconds": cold_seconds,
        "study_fit_seconds": fit_seconds,
        "head_epoch_seconds": fit_seconds / TRIALS / EPOCHS,
        "cold_val_top1": top1,
        "study_best_val_top1": max(scores),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_mib_worker": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
    }


def _train_trial(setup: Setup, trial: int) -> float:
    """Train 16 epochs with a trial's learning rate: the best validation top-1.

    Trial 0 has the experiment's learning rate; each following pair is 1.2 times further above and below it.
    """
    experiment, features, manifest = setup.experiment, setup.features, setup.manifest
    factor = 1.2 ** ((trial + 1) // 2 * (-1) ** trial)
    experiment = override(experiment, {"train.epochs": EPOCHS, "optim.lr": experiment.optim.lr * factor})
    model = TransferModel(setup.model.spec, experiment.seed.train, random_weights=False)
    model.load_state_dict({**setup.model.frozen_state(), **model.trainable_state()})
    model.to(features.accelerator.device)
    history = train_quietly(
        setup,
        experiment,
        model,
        LabeledFeatures(lambda epoch: features.get("train", EVALUATION_VIEW), manifest.labels("train")),
        LabeledFeatures(lambda epoch: features.get("val", EVALUATION_VIEW), manifest.labels("val")),
    )
    return max(epoch.val["top1"] for epoch in history)


def _run_part() -> None:
    """Run one part: its name, a folder for its result, and the experiment's settings are the arguments."""
    name, folder, *argv = sys.argv[1:]
    part = {"cold": cold_run, "scaling": _scaling_part}[name]
    write_result(Path(folder), part(parse(argv)[0], Path(folder)))


if __name__ == "__main__":
    _run_part()
