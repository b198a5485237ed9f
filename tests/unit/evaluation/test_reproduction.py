"""Comparing a run with its reproduction: metrics point by point, and environments."""

from __future__ import annotations

import pytest

from runner.evaluation.reproduction import Change, Difference, compare_points, environment_changes

POINTS = {("train/loss", 1): 2.0, ("val/top1", 1): 0.5, ("train/loss", 2): 1.0, ("test/best/top1", 0): 0.75}


def test_equal_points_are_identical() -> None:
    verdict = compare_points(POINTS, dict(POINTS))
    assert (verdict.identical, verdict.same, verdict.largest) == (True, True, 0)
    assert verdict.sentence() == "identical: all 4 values are the same to the last bit"


def test_the_last_bits_of_losses_are_tolerated() -> None:
    verdict = compare_points(POINTS, {**POINTS, ("train/loss", 2): 1.0 + 1e-7, ("train/loss", 1): 2.0 + 1e-7})
    assert (verdict.identical, verdict.same) == (False, True)
    assert verdict.largest == pytest.approx(1e-7, rel=1e-3)
    assert verdict.sentence() == (
        "the same to 1.0e-07 relative: 2 of 4 values differ in their last bits, first train/loss in epoch 1;"
        " all counts are equal"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [(("val/top1", 1), 0.5 + 1e-9), (("train/loss", 2), 1.001), (("test/best/top1", 0), 0.0)],
    ids=["a nearby count", "a distant loss", "a test metric"],
)
def test_other_differences_are_not_tolerated(key: tuple[str, int], value: float) -> None:
    verdict = compare_points(POINTS, {**POINTS, key: value})
    assert (verdict.identical, verdict.same) == (False, False)
    assert verdict.beyond == [Difference(*key, POINTS[key], value)]
    assert key[0] in verdict.sentence()


def test_another_best_epoch_is_not_tolerated() -> None:
    assert not Difference("best_epoch", 0, 1_000_000, 1_000_001).tolerated
    assert Difference("lr", 1, 1_000_000, 1_000_001).tolerated


def test_a_missing_point_is_a_difference() -> None:
    short = {key: value for key, value in POINTS.items() if key != ("train/loss", 2)}
    for pair in ((POINTS, short), (short, POINTS)):
        verdict = compare_points(*pair)
        assert not verdict.same
        assert verdict.points == 4
        assert verdict.largest == 0
        assert verdict.differences[0].relative is None


def test_differences_are_in_the_order_of_epochs() -> None:
    verdict = compare_points(POINTS, {key: value + 1 for key, value in POINTS.items()})
    assert [each.label for each in verdict.differences] == [
        "train/loss in epoch 1",
        "val/top1 in epoch 1",
        "train/loss in epoch 2",
        "test/best/top1",
    ]


def test_changes_that_may_matter() -> None:
    then = {"python": "3.11", "host": "a", "packages": {"torch": "2.0", "numpy": "2"}, "processes": 2}
    now = {
        "python": "3.11",
        "host": "b",
        "packages": {"torch": "2.1", "numpy": "2", "new": "1"},
        "processes": 1,
    }
    assert environment_changes(then, now) == [Change("torch", "2.0", "2.1"), Change("processes", "2", "1")]


def test_uncommitted_code_is_a_change() -> None:
    clean = {"git_commit": "a" * 40, "git_dirty": False}
    dirty = {**clean, "git_dirty": True}
    words = "a" * 12 + " with uncommitted changes"
    assert environment_changes(clean, clean) == []
    assert environment_changes(clean, dirty) == [Change("code", "a" * 12, words)]
    assert environment_changes(dirty, dirty) == [Change("code", words, words)]
    assert environment_changes({"git_commit": None, "git_dirty": None}, dirty) == []
