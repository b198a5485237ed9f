"""The comparison of best and baseline on new seeds: interval and verdict."""

from __future__ import annotations

import json
import math

import pytest

from runner.evaluation.metrics import METRICS
from runner.study.confirmation import Comparison, Results
from runner.utils.intervals import paired_difference

BASELINE = [0.9, 0.91, 0.93, 0.91, 0.88]


def results(values: list[float]) -> list[Results]:
    """Trainings whose metrics all have the same value."""
    return [{f"{split}/{name}": value for split in ("val", "test") for name in METRICS} for value in values]


def comparison(best: list[float], baseline: list[float] = BASELINE, is_same: bool = False) -> Comparison:
    return Comparison(results(best), results(baseline), is_same)


@pytest.mark.parametrize(
    ("best", "verdict"),
    [
        (
            [0.91, 0.9, 0.925, 0.89, 0.88],
            "No significant gain: −0.50 pt test top-1 (95 % CI −1.89 to +0.89). Keep the baseline.",
        ),
        (
            [0.93, 0.95, 0.96, 0.95, 0.91],
            "Significant gain: +3.40 pt test top-1 (95 % CI +2.72 to +4.08). Use the best experiment.",
        ),
        (
            [0.87, 0.87, 0.9, 0.87, 0.85],
            "Significant loss: −3.40 pt test top-1 (95 % CI −4.08 to −2.72). Keep the baseline.",
        ),
    ],
)
def test_the_verdict_is_a_sentence_with_its_interval(best: list[float], verdict: str) -> None:
    assert comparison(best).verdict == verdict


def test_one_seed_proves_nothing() -> None:
    one = comparison([0.95], [0.5])
    assert (
        one.verdict
        == "No significant gain: +45.00 pt test top-1 (one seed, so no interval). Keep the baseline."
    )
    assert not [name for name in one.metrics() if name.endswith(("_low", "_high"))]
    assert all(math.isfinite(value) for value in one.metrics().values())


def test_a_baseline_that_is_the_best_gains_nothing() -> None:
    assert comparison(BASELINE, is_same=True).verdict == "No gain: the baseline is the best experiment."


def test_every_metric_is_compared_on_both_splits() -> None:
    compared = comparison([0.91, 0.93, 0.92, 0.95, 0.9])
    rows = list(compared.rows())
    assert [row[0] for row in rows] == [
        f"{split} {metric.label}" for split in ("validation", "test") for metric in METRICS.values()
    ]
    assert rows[0][1:] == ("0.9060 ± 0.0182", "0.9220 ± 0.0192", "+0.0160", "[-0.0066, +0.0386]")
    logged = compared.metrics()
    assert logged["confirm/test/top1/difference"] == pytest.approx(
        logged["confirm/test/top1/best"] - logged["confirm/test/top1/baseline"]
    )
    stored = json.loads(compared.to_json())
    assert stored["verdict"] == compared.verdict
    assert [row["test/top1"] for row in stored["baseline"]] == BASELINE


def test_pairs_have_students_interval() -> None:
    from scipy.stats import ttest_rel

    first, second = [0.91, 0.93, 0.92, 0.95, 0.9], BASELINE
    difference, known = paired_difference(first, second), ttest_rel(first, second).confidence_interval(0.95)
    assert (difference.low, difference.high) == (pytest.approx(known.low), pytest.approx(known.high))
    assert difference.mean == pytest.approx(0.016)
    assert not difference.significant
    assert paired_difference([0.9, 0.92, 0.94], [0.5, 0.53, 0.52]).significant
    assert paired_difference([0.5, 0.53, 0.52], [0.9, 0.92, 0.94]).significant


def test_one_pair_is_never_significant() -> None:
    difference = paired_difference([0.9], [0.1])
    assert difference.mean == pytest.approx(0.8)
    assert (difference.low, difference.high) == (-math.inf, math.inf)
    assert not difference.significant
