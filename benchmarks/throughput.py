"""Does reading images hold the network up? Images/s of the bare network, of training and of evaluation.

    ./launch.sh bench throughput [experiment settings]

All with the store off, in one process and one run, in turns: what the machine does meanwhile hits all alike.
`bare_ips`: the whole network on images in memory; `eval_ips`: from image files; `train_ips`: the training loop
from image files, with the experiment's views; `eval_ratio` = eval_ips / bare_ips. Medians of the rounds.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch

ROUNDS = 3
CHUNKS = 10
"""Chunks of images in each measurement."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object."""
    from runner.config.parser import parse
    from runner.data.manifest import Manifest
    from runner.data.transforms import EVALUATION_VIEW
    from runner.evaluation.inference import Inference
    from runner.training import devices
    from runner.training.loop import LabeledFeatures, fit
    from runner.training.setup import prepare
    from runner.utils.console import Terminal
    from runner.utils.errors import UserError

    experiment, _ = parse(argv, prog="runner bench throughput")
    experiment = dataclasses.replace(
        experiment,
        features=dataclasses.replace(experiment.features, store=False),
        fit=dataclasses.replace(experiment.train, epochs=1),
        schedule=dataclasses.replace(experiment.schedule, kind="constant"),
    )
    accelerator = devices.start(experiment)
    terminal = Terminal()
    ready = prepare(experiment, accelerator, Terminal(enabled=False))
    count = CHUNKS * ready.chunk
    entries = _spread(ready.manifest.select("train"), count)
    sample = Manifest(
        ready.manifest.root, tuple(dataclasses.replace(entry, split="train") for entry in entries)
    )
    features = dataclasses.replace(ready.features, manifest=sample)
    if len(entries) < ready.chunk:
        raise UserError(
            f"{len(entries)} training images are too few to measure on; {ready.chunk} or more are needed."
        )
    labels = [ready.manifest.classes.index(entry.label) for entry in entries]
    crop = experiment.augment.crop
    images = torch.randint(0, 256, (ready.chunk, 3, crop, crop), dtype=torch.uint8)
    # The loop validates too; on one chunk, so that training is what is measured.
    few = Manifest(sample.root, sample.entries[:1])
    val = dataclasses.replace(ready.features, manifest=few)

    inference = Inference(ready.network, accelerator, ready.chunk)

    def bare() -> None:
        for _ in range(len(entries) // ready.chunk):
            inference.batch(features.extractor(images)).sum().item()

    def judged() -> None:
        inference.sample_results(features.get("train", EVALUATION_VIEW), labels)

    trained: list[float] = []

    def training() -> None:
        history = fit(
            experiment,
            ready.network,
            LabeledFeatures(
                lambda _: features.get("train", EVALUATION_VIEW if experiment.augment.views == "clean" else 0), labels
            ),
            LabeledFeatures(lambda _: val.get("train", EVALUATION_VIEW), labels[:1]),
            accelerator,
            ready.chunk,
            lambda _: None,
            Terminal(enabled=False),
        )
        trained.append(history[0].images_per_second)

    ready.network.eval()
    rates: dict[str, list[float]] = {"bare": [], "eval": []}
    inference.batch(features.extractor(images))
    for number in range(ROUNDS):
        rates["bare"].append(len(entries) // ready.chunk * ready.chunk / _seconds(bare))
        rates["eval"].append(len(entries) / _seconds(judged))
        training()
        terminal.line(
            f"round {number + 1} of {ROUNDS}: bare {rates['bare'][-1]:.2f}, evaluation {rates['eval'][-1]:.2f},"
            f" training {trained[-1]:.2f} images/s"
        )
    bare_ips, eval_ips = statistics.median(rates["bare"]), statistics.median(rates["eval"])
    print(
        json.dumps(
            {
                "bare_ips": round(bare_ips, 3),
                "train_ips": round(statistics.median(trained), 3),
                "eval_ips": round(eval_ips, 3),
                "eval_ratio": round(
                    statistics.median(e / b for e, b in zip(rates["eval"], rates["bare"], strict=True)), 4
                ),
                "images": len(entries),
                "rounds": ROUNDS,
                "device": devices.describe(accelerator),
                "precision": accelerator.mixed_precision,
            }
        )
    )
    return 0


def _spread(entries: Sequence, count: int) -> Sequence:  # type: ignore[type-arg]
    """At most `count` entries, evenly spread over the classes."""
    step = max(1, len(entries) // count)
    return entries[::step][:count]


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
