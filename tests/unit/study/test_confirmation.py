"""The comparison of best and baseline on new seeds: interval and verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import QUIET, Make
from pictures import COLORS, draw

from runner.config.schema import Experiment
from runner.config.tree import override
from runner.data.manifest import Manifest, build_manifest
from runner.evaluation.metrics import METRICS
from runner.study import confirmation
from runner.study.confirmation import Comparison, Results, confirm
from runner.study.plan import Plan
from runner.study.space import Space
from runner.utils.intervals import paired_difference

BASELINE = [0.9, 0.91, 0.93, 0.91, 0.88]
SOLVED = (
    *("--model.head", "linear", "--model.trainable", "head", "--augment.views", "none"),
    *("--train.solver", "ridge", "--train.penalty", "1", "--train.refit", "true", "--seed.split", "3"),
)


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


def test_one_division_proves_nothing() -> None:
    assert "(one division, so no interval)" in comparison([0.95], [0.5], over="division").verdict


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


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Experiment, Manifest]]:
    """What is trained to confirm, in place of which the results are made up from the split of the images."""
    trained: list[tuple[Experiment, Manifest]] = []

    def train(*arguments: Any) -> Results:
        experiment, manifest = arguments[3], build_manifest(arguments[3], QUIET)
        trained.append((experiment, manifest))
        return results([int(manifest.digest[:6], 16) / 16**6])[0]

    monkeypatch.setattr(confirmation, "_train", train)
    return trained


def confirm_other_penalty(baseline: Experiment) -> Comparison:
    plan = Plan("some", baseline, Space(()), "")
    session: Any = SimpleNamespace(plan=plan, terminal=QUIET)
    return confirm(session, override(baseline, {"train.penalty": 9.0}), 2)


def images_in(manifest: Manifest, split: str) -> frozenset[str]:
    return frozenset(entry.path for entry in manifest.select(split))


@pytest.mark.parametrize("changes", [[], ["--split.by", "count", "--split.train", "5", "--split.val", "3"]])
def test_solved_heads_are_compared_on_the_studys_test_images(
    make: Make, trained: list[tuple[Experiment, Manifest]], changes: list[str]
) -> None:
    baseline = make(*SOLVED, *changes, "--split.test", "4" if changes else "0.25")
    compared = confirm_other_penalty(baseline)
    assert (compared.seeds, compared.over) == (2, "division")
    assert [experiment.train.penalty for experiment, _ in trained] == [1, 9, 1, 9]
    assert not any(experiment.train.refit for experiment, _ in trained)
    study = build_manifest(baseline, QUIET)
    assert {images_in(manifest, "test") for _, manifest in trained} == {images_in(study, "test")}
    training = [images_in(manifest, "train") for _, manifest in trained]
    assert (training[0], training[2]) == (training[1], training[3]), "pairs have the same images"
    assert len({images_in(study, "train"), *training}) == 3


def test_validation_images_that_the_data_give_leave_one_result(
    make: Make, trained: list[tuple[Experiment, Manifest]], tmp_path: Path
) -> None:
    for place, split in enumerate(("train", "val", "test")):
        for label in COLORS:
            folder = tmp_path / "given" / split / label
            folder.mkdir(parents=True)
            draw(label, place).save(folder / "0.png")
    compared = confirm_other_penalty(make(*SOLVED, "--data.root", str(tmp_path / "given")))
    assert len(trained) == 4
    assert "(one division, so no interval)" in compared.verdict


def test_heads_of_steps_are_compared_on_training_seeds(
    make: Make, trained: list[tuple[Experiment, Manifest]]
) -> None:
    compared = confirm_other_penalty(make("--seed.train", "3"))
    assert compared.over == "seed"
    assert [experiment.seed.train for experiment, _ in trained] == [4, 4, 5, 5]
    assert {experiment.seed.val for experiment, _ in trained} == {None}
