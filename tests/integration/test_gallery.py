"""The gallery within a run: when it is drawn, and that the run computes the same with and without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Make, Recorder, checkpoint_content, comparable
from PIL import Image
from torch import Tensor

Train = Callable[..., tuple[Any, Recorder]]


@pytest.fixture
def run_with(make: Make, train: Train, monkeypatch: pytest.MonkeyPatch) -> Train:
    """`run_with("--tracking.gallery", "4")`: the result and the records of a run that draws no real pictures."""

    def blank(image: Tensor, found: np.ndarray, title: str, label: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)

    monkeypatch.setattr("runner.explain.overlay.draw", blank)
    return lambda *words: train(make("--schedule.kind", "constant", *words))


def steps(tracker: Recorder) -> list[int]:
    """The steps of all logged pictures."""
    matches = [re.search(r"^images/.*\+step\+(\d+)\+", name) for name in tracker.artifacts]
    return [int(match[1]) for match in matches if match]


def test_a_run_draws_the_start_the_due_epochs_and_the_best(run_with: Train) -> None:
    words = ("--tracking.gallery", "3", "--tracking.gallery_every", "2", "--train.epochs", "5")
    result, tracker = run_with(*words)
    expected = {0, 2, 4, result.best_epoch.number}
    assert set(steps(tracker)) == expected
    assert len(steps(tracker)) == 3 * 2 * len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["head", "features.18"])
def test_a_run_computes_the_same_with_and_without_a_gallery(run_with: Train, trainable: str) -> None:
    words = ("--model.trainable", trainable, "--tracking.gallery_every", "1", "--train.epochs", "2")
    result, tracker = run_with(*words, "--tracking.gallery", "3")
    other_result, other_tracker = run_with(*words, "--tracking.gallery", "0")
    assert steps(tracker)
    assert not steps(other_tracker)
    assert comparable(result.history) == comparable(other_result.history)
    assert (result.best, result.last) == (other_result.best, other_result.last)
    for name in ("best", "last"):
        (tensors, metadata), (other_tensors, other_metadata) = (
            checkpoint_content(each.folder / "checkpoints" / f"{name}.safetensors")
            for each in (tracker, other_tracker)
        )
        assert metadata == other_metadata
        assert tensors.keys() == other_tensors.keys()
        assert all(torch.equal(value, other_tensors[key]) for key, value in tensors.items())
