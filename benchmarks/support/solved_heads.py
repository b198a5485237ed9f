"""Measures the ridge solver on 1 + 2 + 3 pyramids: of an experiment's images, or of synthetic ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from benchmarks.support.setups import prepare_quietly
from benchmarks.support.stacked_heads import CHANNELS, CLASSES, TRAINING_IMAGES, VALIDATION_IMAGES
from runner.config.schema import Experiment
from runner.config.train_schema import TrainConfig
from runner.config.tree import override
from runner.data.images import SPLITS
from runner.data.transforms import EVALUATION_VIEW
from runner.training import devices
from runner.training.solvers.head import last_layer_inputs, level_sizes
from runner.training.solvers.products import KeptProducts
from runner.training.solvers.solve import Rows, Solver

REPEATS, TEST_IMAGES = 5, 2206
LEVELS = tuple(CHANNELS * size**2 for size in (1, 2, 3))
"""Features of each level of a pyramid of VGG's last convolution."""
SETTINGS = TrainConfig(solver="ridge", penalty_by="leave_one_out", class_weights=0.5)
PYRAMIDS = {
    "model.head": "linear",
    "model.pool": (1, 2, 3),
    "model.power": 0.5,
    "model.norm": "l2",
    "augment.views": "none",
    "train.solver": "ridge",
}
"""Settings of a head on normalized pyramids."""


@dataclass(frozen=True)
class Images:
    """What heads are solved on: images that are split in several ways."""

    origin: str
    """What they are, in words."""
    rows: Rows
    levels: Sequence[int]
    classes: int
    train: int
    val: int
    """Images for training and for validation; the others are for the test."""


def kept_images(experiment: Experiment) -> Images | None:
    """Those of an experiment in files, as pyramids; None if there are none, or if features of some are not kept."""
    if experiment.data.root is None:
        return None
    experiment = override(experiment, PYRAMIDS)
    setup = prepare_quietly(experiment, devices.create_accelerator(experiment))
    counts = setup.manifest.counts()
    views = [(split, EVALUATION_VIEW) for split in SPLITS if counts[split]]
    if not setup.features.stored or setup.features.missing(views).images:
        return None
    values = [last_layer_inputs(setup.model, setup.features.get(*view), counts[view[0]]) for view in views]
    labels = [torch.from_numpy(setup.manifest.labels(split)) for split, _ in views]
    rows = Rows(torch.cat(values), torch.cat(labels))
    return Images(
        f"the {len(rows):,} images in {setup.manifest.root}",
        rows,
        level_sizes(setup.model) or [rows.features.shape[1]],
        len(setup.manifest.classes),
        counts["train"],
        counts["val"],
    )


def synthetic_images(
    train: int = TRAINING_IMAGES,
    val: int = VALIDATION_IMAGES,
    test: int = TEST_IMAGES,
    classes: int = CLASSES,
    levels: Sequence[int] = LEVELS,
) -> Images:
    """Images around a center for each class; by default as many as Caltech-101's, with VGG16's channels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (train + val + test,), generator=generator)
    centers = torch.randn(classes, sum(levels), generator=generator)
    values = torch.randn(len(labels), sum(levels), generator=generator)
    roots = values.add_(centers[labels], alpha=0.3).relu_().sqrt_().split([*levels], dim=1)
    rows = Rows(torch.cat([torch.nn.functional.normalize(level, dim=1) for level in roots], dim=1), labels)
    return Images("synthetic rows of Caltech-101's size", rows, levels, classes, train, val)


def measure_solutions(images: Images) -> dict[str, float]:
    """The whole path of penalties; with a refit on five splits of the same images; a trial of a study."""
    splits = [
        torch.randperm(len(images.rows), generator=torch.Generator().manual_seed(seed))
        for seed in range(REPEATS)
    ]
    result = _seconds("solve", SETTINGS, images, splits[:1])
    result |= _seconds("solve_splits", replace(SETTINGS, refit=True), images, splits)
    kept, trial = KeptProducts(), replace(SETTINGS, penalty_by="validation", penalty=1.0)
    _seconds("first_trial", trial, images, splits[:1], kept)
    return result | _seconds("solve_trial", replace(trial, penalty=0.3), images, splits[:1], kept)


def _seconds(
    name: str,
    settings: TrainConfig,
    images: Images,
    splits: Sequence[torch.Tensor],
    kept: KeptProducts | None = None,
) -> dict[str, float]:
    """Time and processor time of the solutions for some splits."""
    rows = images.rows
    start, processor = time.perf_counter(), time.process_time()
    for order in splits:
        train, val = (
            Rows(rows.features[part], rows.labels[part])
            for part in (order[: images.train], order[images.train : images.train + images.val])
        )
        Solver(settings, images.classes, images.levels, kept).solve(train, val)
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    print(f"{name}: {wall:.1f} s, {processor:.1f} s of processor time", flush=True)
    return {f"{name}_seconds": round(wall, 1), f"{name}_cpu_seconds": round(processor, 1)}
