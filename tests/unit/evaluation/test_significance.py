"""McNemar's test, its interval, and Holm's correction."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from runner.evaluation.predictions import PredictionRow
from runner.evaluation.significance import exact_p, holm_correction, mcnemar, wald_interval


def prediction(path: str, correct: bool, label: str = "a", content: str = "0") -> PredictionRow:
    return PredictionRow(path, content, label, label if correct else "z", 0.9, 1 if correct else 2)


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [
        (0, 0, 1.0),
        (7, 7, 1.0),
        (0, 5, 2 / 2**5),
        (1, 4, 2 * (1 + 5) / 2**5),
        (1, 9, 2 * (1 + 10) / 2**10),
        (12, 2, 2 * (1 + 14 + 91) / 2**14),
    ],
)
def test_exact_p_computed_by_hand(first: int, second: int, p: float) -> None:
    assert exact_p(first, second) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_p_is_twice_the_tail_of_a_fair_coin(first: int, second: int) -> None:
    tail = 2 * binom.cdf(min(first, second), first + second, 0.5)
    assert exact_p(first, second) == pytest.approx(min(1.0, tail))
    assert exact_p(first, second) == pytest.approx(exact_p(second, first))


def test_the_interval_of_agrestis_example() -> None:
    """Approval of a prime minister, Categorical Data Analysis, table 10.1 of the 2nd and 11.1 of the 3rd edition."""
    interval = wald_interval(150, 86, 1600)
    assert interval is not None
    assert interval == pytest.approx((-0.04 - 1.96 * 0.0095, -0.04 + 1.96 * 0.0095), abs=2e-4)


def test_the_interval_has_the_variance_of_the_differences() -> None:
    differences = [1] * 9 + [-1] * 3 + [0] * 88
    mean = sum(differences) / 100
    variance = sum((each - mean) ** 2 for each in differences) / 100
    half = 1.959963985 * math.sqrt(variance / 100)
    assert wald_interval(3, 9, 100) == pytest.approx((mean - half, mean + half))


@pytest.mark.parametrize(("first", "second", "images"), [(0, 0, 50), (0, 4, 4), (4, 0, 4)])
def test_without_variance_there_is_no_interval(first: int, second: int, images: int) -> None:
    assert wald_interval(first, second, images) is None


def test_holm_correction_computed_by_hand() -> None:
    assert holm_correction([]) == []
    assert holm_correction([0.03]) == [0.03]
    assert holm_correction([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])


@given(st.lists(st.floats(0, 1), max_size=9))
def test_holm_is_between_the_value_and_bonferroni_and_keeps_the_order(values: list[float]) -> None:
    corrected = holm_correction(values)
    for value, after in zip(values, corrected, strict=True):
        assert value <= after <= min(1.0, len(values) * value) + 1e-12
    order = sorted(range(len(values)), key=lambda index: values[index])
    assert [corrected[index] for index in order] == sorted(corrected)


def test_images_are_the_same_if_path_content_and_class_are() -> None:
    first = [prediction("a", True), prediction("b", True), prediction("c", True), prediction("d", True)]
    second = [
        prediction("e", False),
        prediction("c", False, content="1"),
        prediction("d", False, label="b"),
        prediction("a", False),
    ]
    result = mcnemar(first, second)
    assert result is not None
    assert (result.images, result.left_out, result.only_first, result.only_second) == (1, 6, 1, 0)
    assert mcnemar(first[:1], second[:1]) is None


def test_classes_are_sorted_by_net_difference() -> None:
    pairs = [("even", 1, 0), ("even", 0, 1), ("lost", 1, 0), ("lost", 1, 0), ("lost", 0, 1)]
    pairs += [("won", 0, 1)] * 3 + [("same", 1, 1), ("same", 0, 0)]
    pairs += [(f"more {number}", 0, 1) for number in range(20)]
    sides = [
        [prediction(str(index), bool(pair[side]), pair[0]) for index, pair in enumerate(pairs)]
        for side in (1, 2)
    ]
    result = mcnemar(*sides)
    assert result is not None
    classes = [(each.name, each.only_first, each.only_second) for each in result.classes]
    assert classes[0] == ("won", 0, 3)
    assert ("lost", 2, 1) in classes
    assert len(classes) == 10
    assert not {"even", "same"} & {name for name, *_ in classes}
