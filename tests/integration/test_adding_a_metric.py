"""A metric that is added to the table is computed, logged, selectable and compared; nothing else has to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from compared_runs import compared_run
from helpers import Make
from sample_predictions import random_predictions
from sklearn.metrics import f1_score
from torch import Tensor

from runner.config.choices import METRIC_NAMES
from runner.evaluation.comparison.comparison import Comparison, metric_rows
from runner.evaluation.comparison.tables import metrics_table
from runner.evaluation.metrics import METRICS, PREDICTED, Metric, Scores, register
from runner.study.options import parse as parse_study


def macro_f1(results: Tensor, labels: Tensor) -> float:
    return float(f1_score(labels.numpy(), results[:, PREDICTED].long().numpy(), average="macro"))


@pytest.fixture(autouse=True)
def f1() -> Iterator[None]:
    """Macro F1 in the table of metrics."""
    register(Metric("f1", "macro F1", "maximize", macro_f1))
    yield
    METRICS.pop("f1")
    METRIC_NAMES.remove("f1")


def test_it_is_computed() -> None:
    case = random_predictions(200, 5)
    expected = f1_score(case.labels, case.predicted, average="macro")
    assert case.scores["f1"] == expected
    assert Scores.from_dict(case.scores.to_dict())["f1"] == expected


def test_a_run_logs_it_and_selects_its_best_checkpoint_by_it(make: Make, train: Callable[..., Any]) -> None:
    words = ("--train.best", "f1", "--train.epochs", "4", "--schedule.kind", "constant")
    result, records = train(make(*words))
    logged = {(name, step): value for name, step, value in records.points}
    values = [logged["val/f1", epoch] for epoch in range(1, 5)]
    best = max(result.history, key=lambda epoch: (epoch.val["f1"], -epoch.val["loss"]))
    assert result.best_epoch.number == best.number
    final = {name: value for (name, _), value in logged.items()}
    assert final["test/best/f1"] == result.best["f1"]
    assert final["test/last/f1"] == result.last["f1"]
    assert final["val/best/f1"] == max(values)


def test_a_study_can_maximize_it() -> None:
    options, _ = parse_study(["--study", "s", "--objective", "f1"])
    assert METRICS[options.objective].direction == "maximize"


def test_a_comparison_marks_its_best_value() -> None:
    runs = [compared_run(name, metrics={"test/best/f1": value}) for name, value in (("a", 0.5), ("b", 0.75))]
    comparison = Comparison("title", runs, metric_rows(runs), [], [])
    assert metrics_table(comparison)[1] == [("test/best/f1", "0.5000", "* 0.7500", "+0.2500")]
