"""Techniques of fine-tuning on one process and on two: the same losses and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import QUIET, Recorder
from pictures import small_experiment
from techniques import BASE, TECHNIQUES
from two_processes import finish_two, start_two

from runner.config.parser import parse
from runner.tracking.tracker import Tracker
from runner.training import devices, run

pytestmark = pytest.mark.slow

Points = dict[tuple[str, int], float]


def train_each(images: Path, place: Path) -> int:
    """Train with each technique on all processes of this launch; the main one writes what was logged."""
    logged = {}
    for name, technique in TECHNIQUES.items():
        words = small_experiment(images, place / "cache", place / "mlruns")
        experiment = parse([*words, *BASE, *technique])[0]
        accelerator = devices.create_accelerator(experiment)
        records = Recorder(place / name) if accelerator.is_main_process else Tracker()
        run.train(experiment, accelerator, records, QUIET)
        if isinstance(records, Recorder):
            logged[name] = {(metric, step): value for metric, step, value in records.points}
    if logged:
        torch.save(logged, place / "logged")
    accelerator.end_training()
    return 0


@pytest.fixture(scope="module")
def logged(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Points]]:
    """What the runs of all techniques logged, on one process and on two that share nothing with it but the images."""
    alone, together = (tmp_path_factory.mktemp(each) for each in ("one", "two"))
    processes = start_two(together, train_each, images, together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_each(images, alone)
    finish_two(together, processes)
    return [torch.load(place / "logged", weights_only=True) for place in (alone, together)]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_two_processes_compute_what_one_does(name: str, logged: list[dict[str, Any]]) -> None:
    one, two = (each[name] for each in logged)
    assert one.keys() == two.keys()
    compared = 0
    for (metric, step), value in one.items():
        if metric.startswith(("train/", "val/", "test/", "lr")):
            assert two[metric, step] == pytest.approx(value, rel=1e-5, abs=1e-6), (metric, step)
            compared += 1
    assert compared > 10
