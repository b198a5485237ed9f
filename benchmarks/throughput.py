"""Measures whether reading images slows the model down: images/s of the bare model, of training and of evaluation.

    ./launch.sh bench throughput [settings of an experiment]

In one process, in turns, so that other load on the machine affects all alike. Medians of the rounds.

- `bare_ips`: the whole model on images in memory, without training. `eval_ips`: evaluation from image files, without
  stored features. `eval_ratio`: eval_ips ÷ bare_ips.
- `step_ips`: the training loop on what it takes, in memory: features of what is frozen, or images. `stored_ips`: on
  features that are read from the store, not held in memory; null where nothing is frozen. `train_ips`: from image
  files, without stored features. `stored_ratio`, `train_ratio`: each ÷ step_ips.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.support.setups import QUIET, prepare_quietly, spread, train_quietly, with_images
from benchmarks.support.timing import seconds
from runner.config.parser import parse
from runner.config.tree import override
from runner.data.images import Images
from runner.data.transforms import EVALUATION_VIEW, view_of_epoch
from runner.evaluation.inference import Inference
from runner.features.cache import FeatureCache, FeatureStorage
from runner.features.sources import InMemorySource, SplitFeatures
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
        experiment,
        {"features.store": False, "train.epochs": 1, "train.stages": [], "schedule.kind": "constant"},
    )
    accelerator = devices.create_accelerator(experiment)
    setup = prepare_quietly(experiment, accelerator)
    entries = spread(setup.manifest.select("train"), BATCHES * setup.batch_size)
    if len(entries) < setup.batch_size:
        raise UserError(
            f"{len(entries)} training images are too few for this benchmark; it needs {setup.batch_size} or more."
        )
    with tempfile.TemporaryDirectory(prefix="runner-bench-") as folder:
        rates = _measure(Loops(setup, entries, Path(folder)), Terminal())
    medians = {
        f"{name}_ips": round(statistics.median(values), 3) if values else None
        for name, values in rates.items()
    }
    result = {
        **medians,
        "eval_ratio": _ratio(rates["eval"], rates["bare"]),
        "stored_ratio": _ratio(rates["stored"], rates["step"]),
        "train_ratio": _ratio(rates["train"], rates["step"]),
        "images": len(entries),
        "rounds": ROUNDS,
        "device": devices.describe_device(accelerator),
        "precision": accelerator.mixed_precision,
    }
    print(json.dumps(result))
    return 0


def _ratio(rates: Sequence[float], others: Sequence[float]) -> float | None:
    """Median of the rounds' ratios; None if there are none."""
    ratios = [rate / other for rate, other in zip(rates, others, strict=False)]
    return round(statistics.median(ratios), 4) if ratios else None


def _measure(loops: Loops, terminal: Terminal) -> dict[str, list[float]]:
    """Images/s of each loop in each round."""
    rates: dict[str, list[float]] = {"bare": [], "eval": [], "step": [], "stored": [], "train": []}
    loops.warm_up()
    for number in range(ROUNDS):
        rates["bare"].append(loops.bare())
        rates["eval"].append(loops.evaluation())
        rates["step"].append(loops.training(loops.in_memory))
        if loops.setup.model.split_index:
            rates["stored"].append(loops.training(loops.stored))
        rates["train"].append(loops.training(loops.features.get("train", loops.view)))
        latest = ", ".join(f"{name} {values[-1]:.2f} images/s" for name, values in rates.items() if values)
        terminal.line(f"round {number + 1} of {ROUNDS}: {latest}")
    return rates


@dataclass(frozen=True)
class Loops:
    """The loops to compare. Each method runs one of them over the same training images: images/s."""

    setup: Setup
    entries: Images
    folder: Path
    """For stored features."""

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

    @property
    def view(self) -> int:
        """That of the first epoch."""
        return view_of_epoch(0, self.setup.experiment.augment.views)

    @cached_property
    def in_memory(self) -> InMemorySource:
        """What training takes of each image."""
        (rows,) = self.features.get("train", self.view).batches([range(len(self.entries))])
        return InMemorySource(rows.cpu(), np.arange(len(self.entries)), self.setup.accelerator.device)

    @cached_property
    def stored(self) -> SplitFeatures:
        """The same, in a store that is read in each epoch."""
        storage = FeatureStorage(self.folder, memory_bytes=0, max_bytes=math.inf)
        return dataclasses.replace(self.features, storage=storage, terminal=QUIET).get("train", self.view)

    def warm_up(self) -> None:
        """Compile what is compiled, and allocate what is allocated once."""
        self.setup.model.eval()
        self._infer(batches=1)
        self.training(self.in_memory)
        if self.setup.model.split_index:
            self.stored  # noqa: B018 (computed here)

    def bare(self) -> float:
        batches = len(self.entries) // self.setup.batch_size
        return batches * self.setup.batch_size / seconds(lambda: self._infer(batches))

    def evaluation(self) -> float:
        features = self.features.get("train", EVALUATION_VIEW)
        return len(self.entries) / seconds(lambda: self.inference.sample_results(features, self.labels))

    def training(self, source: SplitFeatures) -> float:
        """One epoch. It validates on a single image, which costs one batch, and does not count that time."""
        setup = self.setup
        one = with_images(setup.features, self.entries[:1])
        history = train_quietly(
            setup,
            setup.experiment,
            setup.model,
            LabeledFeatures(lambda epoch: source, self.labels),
            LabeledFeatures(lambda epoch: one.get("train", EVALUATION_VIEW), self.labels[:1]),
        )
        return history[0].images_per_second

    def _infer(self, batches: int) -> None:
        for _ in range(batches):
            self.inference.batch(self.setup.features.extractor(self.images)).sum().item()
