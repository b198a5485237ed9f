"""Techniques of fine-tuning on one process and on two: the same losses and scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from techniques import BASE, TECHNIQUES
from two_processes import Points, logged_by_one_and_two

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def logged(images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Points]]:
    """What the runs of all techniques logged, on one process and on two."""
    variants = {name: (*BASE, *words) for name, words in TECHNIQUES.items()}
    return logged_by_one_and_two(images, variants, tmp_path_factory)


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
