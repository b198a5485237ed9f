"""What differs between runs, the best value of each metric, and the sentences about them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from compared_runs import compared_run

from runner.config.identity import Identity
from runner.evaluation.comparison.comparison import (
    ComparedRun,
    Comparison,
    PairedTest,
    differing_settings,
    metric_rows,
    runs_of_same_experiment,
    to_json,
)
from runner.evaluation.comparison.runs import comparison_notes, count_classes
from runner.evaluation.comparison.tables import (
    format_value,
    mcnemar_explanation,
    mcnemar_table,
    mcnemar_title,
    metrics_table,
    same_settings,
    settings_table,
    summary,
    verdict,
)
from runner.evaluation.predictions import PredictionRow
from runner.evaluation.significance import McNemarResult


def test_equal_settings_are_left_out() -> None:
    runs = [
        compared_run("a", settings={"x": "1", "y": "2"}),
        compared_run("b", settings={"x": "1", "y": "3", "z": "4"}),
    ]
    assert differing_settings(runs) == {"y": ["2", "3"], "z": [None, "4"]}
    assert settings_table(runs)[1] == [("y", "2", "3"), ("z", "–", "4")]
    assert same_settings(runs) == "1 of 3 settings are the same and not shown."


def test_numbers_are_rounded_unless_they_would_look_the_same() -> None:
    runs = [
        compared_run("a", settings={"x": "0.30000000000000004", "y": "0.10000000001", "z": "a longer text"}),
        compared_run("b", settings={"x": "0.1", "y": "0.10000000002", "z": "b"}),
    ]
    assert settings_table(runs)[1] == [
        ("x", "0.3", "0.1"),
        ("y", "0.10000000001", "0.10000000002"),
        ("z", "a longer text", "b"),
    ]


def test_runs_of_the_same_experiment_are_grouped() -> None:
    settings = ({"x": "1", "cache": "here"}, {"x": "2"}, {"x": "1", "cache": "elsewhere"})
    runs = [compared_run(name, settings=each) for name, each in zip("abc", settings, strict=True)]
    assert [[run.run_id for run in group] for group in runs_of_same_experiment(runs)] == [["a", "c"]]
    assert runs_of_same_experiment(runs[:1] + runs[2:]) == []
    on_images = [compared_run(digest, identity=Identity(manifest=digest)) for digest in ("a", "b")]
    assert runs_of_same_experiment([*on_images, on_images[1]]) == [[on_images[1], on_images[1]]]


def test_the_best_value_depends_on_the_direction() -> None:
    values = {
        "val/loss": (2.0, 1.0),
        "test/best/top1": (0.9, 0.8),
        "lr": (1.0, 2.0),
        "val/top5": (1.0, 1.0),
        "evaluation/test/ece": (0.1, 0.2),
    }
    runs = [
        compared_run(name, metrics={key: each[index] for key, each in values.items()})
        for index, name in enumerate("ab")
    ]
    best = {row.name: sorted(row.best) for row in metric_rows(runs)}
    assert best == {
        "test/best/top1": [0],
        "val/loss": [1],
        "val/top5": [],
        "lr": [],
        "evaluation/test/ece": [0],
    }
    assert next(iter(best)) == "test/best/top1"


@pytest.mark.parametrize(("direction", "best"), [("maximize", 1), ("minimize", 0)])
def test_the_objective_has_the_direction_of_its_study(direction: Any, best: int) -> None:
    runs = [compared_run("a", metrics={"objective": 0.1}), compared_run("b", metrics={"objective": 0.2})]
    (row,) = metric_rows([*runs, compared_run("c")], direction)
    assert (row.best, row.values) == ({best}, (0.1, 0.2, None))


def test_metrics_that_are_not_finite() -> None:
    runs = [
        compared_run("a", metrics={"val/loss": math.nan}),
        compared_run("b", metrics={"val/loss": math.inf}),
    ]
    (row,) = metric_rows(runs)
    assert row.best == frozenset()
    assert [format_value(row.name, value) for value in (*row.values, None)] == ["nan", "inf", "–"]
    metrics = to_json(Comparison("title", runs, [row], [], []), "folder", None)["metrics"]  # type: ignore[arg-type]
    assert metrics["val/loss"]["values"] == {"a": None, "b": None}


def paired_test(name: str, only_first: int, only_second: int, correction: float = 1.0) -> PairedTest:
    result = McNemarResult(1000, 0, only_first, only_second, ())
    return PairedTest(compared_run(name), result, "", min(1.0, correction * result.p))


def test_a_verdict_is_a_sentence_with_numbers() -> None:
    reference = compared_run("first")
    assert verdict(reference, paired_test("second", 30, 25)) == (
        "No significant difference between second and first: −0.50 pt test top-1 (95 % CI −1.95 to +0.95;"
        " McNemar's test: p = 0.59; 1,000 images of both)."
    )
    better = verdict(reference, paired_test("second", 5, 60, correction=2))
    assert better.startswith("second is significantly better than first: +5.50 pt test top-1 (95 % CI +")
    assert "p < 0.0001 with Holm's correction" in better
    assert "significantly worse" in verdict(reference, paired_test("second", 60, 5))


def test_a_summary_of_several_runs_names_each() -> None:
    runs = [compared_run(name) for name in "abcde"]
    tests = [
        paired_test("b", 0, 50),
        paired_test("c", 50, 0),
        paired_test("d", 5, 5),
        PairedTest(runs[4], None, "e has no predictions"),
    ]
    assert summary(Comparison("title", runs, [], tests, [])) == (
        "Compared with a on the same test images at the 5 % level: better: b; worse: c; no significant difference: d;"
        " not tested: e."
    )
    assert summary(Comparison("title", runs[:2], [], tests[3:], [])) == ""


def explained(first: ComparedRun, second: ComparedRun) -> str:
    return mcnemar_explanation(Comparison("title", [first, second], [], [result_of(second)], []))


def result_of(run: ComparedRun) -> PairedTest:
    return PairedTest(run, McNemarResult(1000, 0, 30, 25, ()))


def test_validation_folds_are_not_called_test_images() -> None:
    one, other, single = compared_run("a", fold="val"), compared_run("b", fold="val"), compared_run("c")
    assert "−0.50 pt validation-fold top-1" in verdict(one, result_of(other))
    comparison = Comparison("title", [one, other], [], [result_of(other)], [])
    assert mcnemar_title(comparison) == "Same validation-fold images: comparison with a"
    assert "test images" not in mcnemar_explanation(comparison)
    assert "test top-1" not in mcnemar_explanation(comparison)
    assert "−0.50 pt top-1" in verdict(one, result_of(single))
    (note,) = comparison_notes([one, other], [result_of(other)])
    assert note.startswith("the out-of-fold scores of a, b are on validation folds")
    assert "optimistic" in note
    in_test = [compared_run("a", fold="test"), compared_run("b", fold="test")]
    assert "pt test top-1" in verdict(in_test[0], result_of(in_test[1]))


def test_the_models_that_are_compared_are_said() -> None:
    single, folds = compared_run("c"), compared_run("a", fold="test")
    assert "It compares these two trained models" in explained(single, compared_run("d"))
    several = explained(folds, single)
    assert "these two trained models" not in several
    assert "Cross-validations (a) have several models" in several
    assert "ensemble" not in several
    ensemble = explained(folds, compared_run("b", fold="test", seeds=10))
    assert "Cross-validations (a, b)" in ensemble
    assert "b has the mean probabilities over 10 training seeds: an ensemble" in ensemble


def test_metrics_that_so_few_classes_cannot_differ_in_are_left_out() -> None:
    names = ("out_of_fold/top5_low", "test/best/top5", "test/best/top5_sd_over_seeds", "val/best/top5_sd")
    runs = [compared_run(each, metrics=dict.fromkeys((*names, "val/top1"), 1.0)) for each in "ab"]
    for classes, shown in ((5, 1), (6, 5), (0, 5)):
        comparison = Comparison("title", runs, metric_rows(runs), [], [], classes)
        assert len(metrics_table(comparison)[1]) == shown
        assert len(to_json(comparison, Path("folder"), None)["metrics"]) == 5


def test_classes_are_counted_in_predictions() -> None:
    def row(true: str, predicted: str, rank: int) -> PredictionRow:
        return PredictionRow("path", "digest", true, predicted, 0.5, rank)

    few = ([row("a", "a", 1), row("a", "b", 2)], "")
    assert count_classes([few, few]) == 2
    assert count_classes([few, ([row("a", "b", 7)], "")]) == 7
    assert count_classes([([row("a", "a", 1)], "")]) == 2
    assert count_classes([few, ([], "it has no predictions")]) == 0


def test_a_table_without_tests_is_empty() -> None:
    assert mcnemar_table([])[1] == []
