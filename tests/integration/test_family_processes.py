"""Each family of networks on one process and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from helpers import QUIET, Recorder
from pictures import small_experiment
from two_processes import finish_two, start_two

from runner.config.parser import parse
from runner.tracking.tracker import Tracker
from runner.training import devices, run

pytestmark = pytest.mark.slow

IMAGES = 36
"""Half of them are for training, a quarter for validation and a quarter for the test."""
Points = dict[tuple[str, int], float]


def train_each(images: Path, place: Path) -> int:
    """Train a head on each family's network, on all processes of this launch; the main one writes what was logged."""
    logged = {}
    for name, family in FAMILIES.items():
        words = small_experiment(images, place / "cache", place / "mlruns")
        words += [*family.words(), "--train.epochs", "1", "--augment.views", "none"]
        # Two processes cannot share batches of seven evenly, nor the four images of the last one.
        words += ["--train.batch_size", "7", "--features.compile", "false"]
        experiment = parse(words)[0]
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
    """What the runs of all families logged, on one process and on two that share nothing with it but the images."""
    alone, together = (tmp_path_factory.mktemp(each) for each in ("one", "two"))
    processes = start_two(together, train_each, images, together)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train_each(images, alone)
    finish_two(together, processes)
    return [torch.load(place / "logged", weights_only=True) for place in (alone, together)]


@pytest.mark.parametrize("name", FAMILIES)
def test_two_processes_compute_what_one_does(name: str, logged: list[dict[str, Any]]) -> None:
    one, two = (each[name] for each in logged)
    assert one.keys() == two.keys()
    for metric in ("train/loss", "val/loss"):
        assert two[metric, 1] == pytest.approx(one[metric, 1], rel=1e-5)
    for metric in ("train/top1", "val/top1", "test/best/top1", "test/last/top1"):
        ((step, share),) = ((step, value) for (each, step), value in one.items() if each == metric)
        assert two[metric, step] == share, metric
    rows = [value for (metric, _), value in two.items() if metric == "system/features/misses"]
    assert sum(rows) == IMAGES
