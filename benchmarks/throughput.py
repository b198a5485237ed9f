"""Measures whether reading images slows the model down: images/s of the bare model, of training and of evaluation.

    ./launch.sh bench throughput [settings of an experiment]

Without stored features, in one process, in turns, so that other load on the machine affects all alike.
`bare_ips`: the whole model on images in memory. `eval_ips`: evaluation from image files. `train_ips`: the training
loop from image files, with the experiment's augmentation. `eval_ratio`: eval_ips ÷ bare_ips. Medians of the rounds.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.setups import prepare_quietly, spread, train_quietly, with_images
from benchmarks.support.timing import seconds
from runner.config.parser import parse
from runner.config.tree import override
from runner.data.images import Images
from runner.data.transforms import EVALUATION_VIEW, view_of_epoch
from runner.evaluation.inference import Inference
from runner.features.cache import FeatureCache
from runner.training import devices
from runner.training.fit_data import LabeledFeatures
from runner.training.setup import Setup
from runner.utils.console import Terminal
from runner.utils.errors import UserError

ROUNDS = 3
BATCHES = 10
"""Inference batches of images in each measurement."""


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line. Raises `UserError` for too few images."""
    experiment, _ = parse(argv, prog="runner bench throughput")
    experiment = override(
        experiment, {"features.store": False, "train.epochs": 1, "schedule.kind": "constant"}
    )
    accelerator = devices.create_accelerator(experiment)
    setup = prepare_quietly(experiment, accelerator)
    entries = spread(setup.manifest.select("train"), BATCHES * setup.batch_size)
    if len(entries) < setup.batch_size:
        raise UserError(
            f"{len(entries)} training images are too few for this benchmark; it needs {setup.batch_size} or more."
        )
    rates = _measure(Loops(setup, entries), Terminal())
    medians = {f"{name}_ips": round(statistics.median(values), 3) for name, values in rates.items()}
    ratios = [evaluation / bare for evaluation, bare in zip(rates["eval"], rates["bare"], strict=True)]
    result = {
        **medians,
        "eval_ratio": round(statistics.median(ratios), 4),
        "images": len(entries),
        "rounds": ROUNDS,
        "device": devices.describe_device(accelerator),
        "precision": accelerator.mixed_precision,
    }
    print(json.dumps(result))
    return 0


def _measure(loops: Loops, terminal: Terminal) -> dict[str, list[float]]:
    """Images/s of each loop in each round."""
    rates: dict[str, list[float]] = {"bare": [], "train": [], "eval": []}
    loops.warm_up()
    for number in range(ROUNDS):
        rates["bare"].append(loops.bare())
        rates["eval"].append(loops.evaluation())
        rates["train"].append(loops.training())
        latest = ", ".join(f"{name} {values[-1]:.2f} images/s" for name, values in rates.items())
        terminal.line(f"round {number + 1} of {ROUNDS}: {latest}")
    return rates


@dataclass(frozen=True)
class Loops:
    """The loops to compare. Each method runs one of them over the same training images: images/s."""

    setup: Setup
    entries: Images

    @cached_property
    def inference(self) -> Inference:
        return self.setup.inference()

    @cached_property
    def images(self) -> Tensor:
        """An inference batch of random images in memory."""
        crop = self.setup.experiment.augment.input_size
        return torch.randint(0, 256, (self.setup.batch_size, 3, crop, crop), dtype=torch.uint8)

    @cached_property
    def features(self) -> FeatureCache:
        return with_images(self.setup.features, self.entries)

    @cached_property
    def labels(self) -> np.ndarray:
        return self.entries.labels.astype(np.int64)

    def warm_up(self) -> None:
        """Compile what is compiled, and allocate what is allocated once."""
        self.setup.model.eval()
        self._infer(batches=1)

    def bare(self) -> float:
        batches = len(self.entries) // self.setup.batch_size
        return batches * self.setup.batch_size / seconds(lambda: self._infer(batches))

    def evaluation(self) -> float:
        features = self.features.get("train", EVALUATION_VIEW)
        return len(self.entries) / seconds(lambda: self.inference.sample_results(features, self.labels))

    def training(self) -> float:
        """One epoch. It validates on a single image, which costs one batch, and does not count that time."""
        setup, experiment = self.setup, self.setup.experiment
        view = view_of_epoch(0, experiment.augment.views)
        one = with_images(setup.features, self.entries[:1])
        history = train_quietly(
            setup,
            experiment,
            setup.model,
            LabeledFeatures(lambda epoch: self.features.get("train", view), self.labels),
            LabeledFeatures(lambda epoch: one.get("train", EVALUATION_VIEW), self.labels[:1]),
        )
        return history[0].images_per_second

    def _infer(self, batches: int) -> None:
        for _ in range(batches):
            self.inference.batch(self.setup.features.extractor(self.images)).sum().item()
