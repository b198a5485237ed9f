"""Measures the ridge solver on synthetic features of Caltech-101's size: 1 + 2 + 3 pyramids of 512 channels."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from runner.config.schema import TrainConfig
from runner.training.solvers.products import KeptProducts
from runner.training.solvers.solve import Rows, Solver

CLASSES, LEVELS = 101, (512, 2048, 4608)
TRAIN, VAL, TEST = 4286, 2185, 2206
SPLITS = 5
SETTINGS = TrainConfig(solver="ridge", penalty_by="leave_one_out", class_weights=0.5)


def measure_solutions(argv: Sequence[str], folder: Path) -> dict[str, float]:
    """The whole path of penalties; with a refit on five splits of the same images; a trial of a study."""
    images = _images()
    splits = [torch.randperm(len(images), generator=torch.Generator().manual_seed(s)) for s in range(SPLITS)]
    result = _seconds("solve", SETTINGS, images, splits[:1], None)
    result |= _seconds("solve_splits", replace(SETTINGS, refit=True), images, splits, None)
    kept, trial = KeptProducts(), replace(SETTINGS, penalty_by="validation", penalty=1.0)
    _seconds("first_trial", trial, images, splits[:1], kept)
    return result | _seconds("solve_trial", replace(trial, penalty=0.3), images, splits[:1], kept)


def _images() -> Rows:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (TRAIN + VAL + TEST,), generator=generator)
    centers = torch.randn(CLASSES, sum(LEVELS), generator=generator)
    values = (
        torch.randn(len(labels), sum(LEVELS), generator=generator).add_(centers[labels], alpha=0.3).relu_()
    )
    levels = values.sqrt_().split(LEVELS, dim=1)
    return Rows(torch.cat([torch.nn.functional.normalize(level, dim=1) for level in levels], dim=1), labels)


def _seconds(
    name: str, settings: TrainConfig, images: Rows, splits: list[torch.Tensor], kept: KeptProducts | None
) -> dict[str, float]:
    """Time and processor time of the solutions for some splits."""
    start, processor = time.perf_counter(), time.process_time()
    for order in splits:
        train, val = (
            Rows(images.features[part], images.labels[part])
            for part in (order[:TRAIN], order[TRAIN : TRAIN + VAL])
        )
        Solver(settings, CLASSES, LEVELS, kept).solve(train, val)
    wall, processor = time.perf_counter() - start, time.process_time() - processor
    print(f"{name}: {wall:.1f} s, {processor:.1f} s of processor time", flush=True)
    return {f"{name}_seconds": round(wall, 1), f"{name}_cpu_seconds": round(processor, 1)}
