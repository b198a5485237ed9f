"""McNemar's test, its interval, and Holm's correction."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from runner.evaluation.predictions import Prediction
from runner.evaluation.significance import exact_p, holm, paired, wald


def prediction(path: str, right: bool, label: str = "a", content: str = "0") -> Prediction:
    return Prediction(path, content, label, label if right else "z", 0.9, 0 if right else 1)


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
def test_mcnemar_is_what_it_is_by_hand(first: int, second: int, p: float) -> None:
    assert exact_p(first, second) == pytest.approx(p, rel=1e-12)


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_twice_the_tail_of_a_fair_coin(first: int, second: int) -> None:
    tail = 2 * binom.cdf(min(first, second), first + second, 0.5)
    assert exact_p(first, second) == pytest.approx(min(1.0, tail))
    assert exact_p(first, second) == pytest.approx(exact_p(second, first))


def test_the_interval_is_that_of_agresti_s_example() -> None:
    """Approval of a prime minister, Categorical Data Analysis, table 10.1 of the 2nd and 11.1 of the 3rd edition."""
    interval = wald(150, 86, 1600)
    assert interval is not None
    assert interval == pytest.approx((-0.04 - 1.96 * 0.0095, -0.04 + 1.96 * 0.0095), abs=2e-4)


def test_the_interval_has_the_variance_of_the_differences() -> None:
    differences = [1] * 9 + [-1] * 3 + [0] * 88
    mean = sum(differences) / 100
    variance = sum((each - mean) ** 2 for each in differences) / 100
    half = 1.959963985 * math.sqrt(variance / 100)
    assert wald(3, 9, 100) == pytest.approx((mean - half, mean + half))


@pytest.mark.parametrize(("first", "second", "images"), [(0, 0, 50), (0, 4, 4), (4, 0, 4)])
def test_there_is_no_interval_where_nothing_tells_of_the_spread(first: int, second: int, images: int) -> None:
    assert wald(first, second, images) is None


def test_holm_is_what_it_is_by_hand() -> None:
    assert holm([]) == []
    assert holm([0.03]) == [0.03]
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.001, 0.9]) == pytest.approx([1.0, 0.003, 1.0])


@given(st.lists(st.floats(0, 1), max_size=9))
def test_holm_lies_between_the_value_and_bonferroni_and_keeps_the_order(values: list[float]) -> None:
    corrected = holm(values)
    for value, after in zip(values, corrected, strict=True):
        assert value <= after <= min(1.0, len(values) * value) + 1e-12
    order = sorted(range(len(values)), key=lambda place: values[place])
    assert [corrected[place] for place in order] == sorted(corrected)


def test_only_images_of_the_same_path_content_and_class_are_paired() -> None:
    ones = [prediction("a", True), prediction("b", True), prediction("c", True), prediction("d", True)]
    others = [
        prediction("e", False),
        prediction("c", False, content="1"),
        prediction("d", False, label="b"),
        prediction("a", False),
    ]
    result = paired(ones, others)
    assert result is not None
    assert (result.images, result.left_out, result.first, result.second) == (1, 6, 1, 0)
    assert paired(ones[:1], others[:1]) is None


def test_classes_come_by_their_net_difference() -> None:
    pairs = [("even", 1, 0), ("even", 0, 1), ("lost", 1, 0), ("lost", 1, 0), ("lost", 0, 1)]
    pairs += [("won", 0, 1)] * 3 + [("same", 1, 1), ("same", 0, 0)]
    pairs += [(f"more {place}", 0, 1) for place in range(20)]
    sides = [
        [prediction(str(place), bool(pair[side]), pair[0]) for place, pair in enumerate(pairs)]
        for side in (1, 2)
    ]
    result = paired(*sides)
    assert result is not None
    named = [(each.label, each.first, each.second) for each in result.classes]
    assert named[0] == ("won", 0, 3)
    assert ("lost", 2, 1) in named
    assert len(named) == 10
    assert not {"even", "same"} & {label for label, *_ in named}
