"""The comparison of best and baseline on new seeds: interval and verdict."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from runner.evaluation.metrics import METRICS
from runner.study.confirmation import Comparison, Results
from runner.utils.intervals import paired_difference

BASELINE = [0.9, 0.91, 0.93, 0.91, 0.88]


def results(values: list[float], losses: list[float] | None = None) -> list[Results]:
    """Trainings whose metrics all have the same value; the losses are 1 - value unless they are given."""
    losses = losses or [1 - value for value in values]
    return [
        {
            f"{split}/{name}": loss if name == "loss" else value
            for split in ("val", "test")
            for name in METRICS
        }
        for value, loss in zip(values, losses, strict=True)
    ]


def comparison(best: list[float], baseline: list[float] = BASELINE, **fields: Any) -> Comparison:
    return Comparison(results(best), results(baseline), **fields)


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
    assert comparison(best).best_wins == ("Use the best" in verdict)


def test_one_split_proves_nothing() -> None:
    assert "(one split, so no interval)" in comparison([0.95], [0.5], over="split").verdict


def test_one_seed_proves_nothing() -> None:
    one = comparison([0.95], [0.5])
    assert (
        one.verdict
        == "No significant gain: +45.00 pt test top-1 (one seed, so no interval). Keep the baseline."
    )
    assert not [name for name in one.metrics() if name.endswith(("_low", "_high"))]
    assert all(math.isfinite(value) for value in one.metrics().values())


def test_the_best_wins_by_the_studys_objective() -> None:
    better = [0.93, 0.95, 0.96, 0.95, 0.91]
    by_loss = comparison(better, objective="loss")
    assert by_loss.best_wins
    assert by_loss.verdict == (
        "Significant gain: −0.0340 test loss (95 % CI −0.0408 to −0.0272). Use the best experiment."
    )
    assert not comparison(BASELINE, better, objective="loss").best_wins


def test_a_best_that_is_significantly_worse_by_another_metric_is_not_recommended() -> None:
    better, losses = [0.93, 0.95, 0.96, 0.95, 0.91], [0.5, 0.51, 0.5, 0.52, 0.5]
    compared = Comparison(results(better, losses), results(BASELINE))
    assert not compared.best_wins
    assert compared.verdict == (
        "Significant gain: +3.40 pt test top-1 (95 % CI +2.72 to +4.08), but a significant loss:"
        " +0.4120 test loss (95 % CI +0.3851 to +0.4389). Keep the baseline, or weigh them."
    )


def test_metrics_that_cannot_differ_are_not_shown() -> None:
    labels = [row[0] for row in comparison(BASELINE, classes=3).rows()]
    assert "test top-1" in labels
    assert "test top-5" not in labels


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
