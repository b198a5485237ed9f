"""The epochs of a training are rows of fixed columns under one header."""

from __future__ import annotations

from typing import Any

import pytest

from runner.evaluation.metrics import Scores
from runner.training.epoch_table import EpochTable
from runner.training.results import EpochResult


def epoch(number: int, classes: int = 101, **changes: Any) -> EpochResult:
    values = {"top1": 0.9, "top5": 0.99, "balanced_accuracy": 0.88, "loss": 0.4321}
    fields: dict[str, Any] = {
        "number": number,
        "train_loss": 1.23456,
        "train_top1": 0.8,
        "val": Scores(values, 100, 90, 99, classes),
        "lr": 3e-4,
        "seconds": 75.2,
        "images_per_second": 1.0,
        "best": False,
        "lr_reduced": False,
        "feature_seconds": 62.0,
    }
    return EpochResult(**fields | changes)


LARGE: dict[str, Any] = {
    "train_loss": 123456.7,
    "lr": 1.234e-5,
    "seconds": 400_000.0,
    "feature_seconds": 35_999.0,
    "best": True,
    "lr_reduced": True,
}


@pytest.mark.parametrize("width", [79, 80, 120])
@pytest.mark.parametrize("classes", [3, 101])
@pytest.mark.parametrize("best", ["top1", "top5", "balanced_accuracy"])
def test_rows_fit_and_stand_under_the_header(width: int, classes: int, best: str) -> None:
    table = EpochTable(epoch(1, classes).val, best, width)
    *upper, last = table.header()
    lines = [table.row(epoch(1, classes)), table.row(epoch(12345, classes, **LARGE))]
    assert max(map(len, [*upper, last, *lines])) <= width
    ends = [len(last[: last.index(word)]) + len(word) for word in ("epoch", "lr")]
    for line in lines:
        assert all(len(line) == end or line[end] == " " for end in ends)
    assert len({len(line.removesuffix(" best, lr reduced").removesuffix(" best")) for line in lines}) == 1


def test_a_row_has_the_time_of_features_apart_from_that_of_training() -> None:
    table = EpochTable(epoch(1).val, "top1", 79)
    assert table.header() == [
        "         train   train      val     val     val           feature    train",
        "epoch     loss   top-1     loss   top-1   top-5       lr     time     time",
    ]
    row = table.row(epoch(3, best=True))
    assert row == "    3   1.2346  0.8000   0.4321  0.9000  0.9900   0.0003     1:02   13.2 s best"


def test_a_wide_terminal_shows_more() -> None:
    narrow, wide = (EpochTable(epoch(1).val, "top1", width) for width in (79, 120))
    assert "balanced" not in " ".join(narrow.header())
    assert "balanced" in " ".join(wide.header())
    assert not narrow.row(epoch(2, lr_reduced=True)).endswith("lr reduced")
    assert wide.row(epoch(2, lr_reduced=True)).endswith(" lr reduced")


def test_the_metric_that_selects_the_best_epoch_is_always_shown() -> None:
    assert "balanced" in " ".join(EpochTable(epoch(1).val, "balanced_accuracy", 79).header())


def test_top5_of_few_classes_is_not_shown() -> None:
    assert "top-5" not in " ".join(EpochTable(epoch(1, 5).val, "top1", 120).header())
