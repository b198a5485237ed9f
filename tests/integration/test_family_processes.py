"""Each family of networks on one process and on two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES
from two_processes import Points, logged_by_one_and_two

pytestmark = pytest.mark.slow

IMAGES = 36
"""Half of them are for training, a quarter for validation and a quarter for the test."""
WORDS = ("--train.epochs", "1", "--augment.views", "none")


@pytest.fixture(scope="module")
def logged(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Points]]:
    """What the runs of all families logged, on one process and on two."""
    variants = {name: (*family.words(), *WORDS) for name, family in FAMILIES.items()}
    return logged_by_one_and_two(images, variants, tmp_path_factory)


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
