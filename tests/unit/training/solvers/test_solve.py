"""How a solver chooses its penalty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cross_entropy

from runner.config.train_schema import TrainConfig
from runner.training.solvers import solve as solving
from runner.training.solvers.ridge import RidgeProblem, ridge, signed_targets
from runner.training.solvers.solve import Rows, Solution, Solver, count_parts

RIDGE = TrainConfig(solver="ridge")


def rows(images: int, seed: int) -> Rows:
    """Of three classes that overlap."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(images) % 3
    centers = torch.randn(3, 20, generator=torch.Generator().manual_seed(9))
    return Rows(centers[labels] + 2 * torch.randn(images, 20, generator=generator), labels)


def solve(settings: TrainConfig, train: Rows, val: Rows) -> Solution:
    return Solver(settings, 3).solve(train, val)


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_the_best_penalty_on_validation_images_is_chosen(solver: str) -> None:
    settings = replace(RIDGE, solver=solver, penalty=(1e-6, 1.0, 100.0, 1e5))
    solution = solve(settings, rows(60, 1), rows(90, 2))
    assert [point.penalty for point in solution.path] == [1e-6, 1.0, 100.0, 1e5]
    best = max(point.scores["top1"] for point in solution.path)
    assert solution.penalty == max(point.penalty for point in solution.path if point.scores["top1"] == best)
    assert solution.refitted is None


@pytest.mark.parametrize("solver", ["ridge", "logistic"])
def test_a_penalty_is_chosen_by_the_loss_of_the_calibrated_head(solver: str) -> None:
    settings = replace(RIDGE, solver=solver, best="loss", penalty=(1e-6, 1.0, 100.0, 1e5))
    train, val = rows(60, 1), rows(90, 2)
    solution = solve(settings, train, val)
    losses = {point.penalty: point.scores["loss"] for point in solution.path}
    assert solution.penalty == min(losses, key=losses.__getitem__)
    loss = cross_entropy(solution.linear(val.features), val.labels)
    assert float(loss) == pytest.approx(losses[solution.penalty], rel=1e-5)


def test_leaving_one_out_reads_no_validation_image() -> None:
    settings = replace(RIDGE, penalty_by="leave_one_out")
    first, second = (solve(settings, rows(60, 1), rows(90, seed)) for seed in (2, 3))
    assert torch.equal(first.linear.weight, second.linear.weight)


def test_a_refit_is_the_solution_of_both_splits() -> None:
    settings = replace(RIDGE, penalty=5.0, refit=True)
    train, val = rows(60, 1), rows(90, 2)
    solution = solve(settings, train, val)
    together = train + val
    problem = RidgeProblem(together.features, signed_targets(together.labels, 3), torch.ones(150))
    expected = problem.linear(next(ridge(problem, [5.0]))[1])
    assert solution.refitted is not None
    ratio = solution.refitted.weight / expected.weight
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio))


@pytest.mark.parametrize("images", [60, 15], ids=["more images than features", "fewer"])
def test_standardized_features_give_what_scikit_learn_gives(images: int) -> None:
    train, val = rows(images, 1), rows(90, 2)
    train.features[:, 3] = 0.5  # constant
    scaler = StandardScaler().fit(train.features.double())
    expected = Ridge(alpha=2.0).fit(
        scaler.transform(train.features.double()), signed_targets(train.labels, 3).numpy()
    )
    settings = replace(RIDGE, penalty=2.0, standardize=True, refit=True)
    solution = solve(settings, train, val)
    logits, target = solution.linear(val.features), expected.predict(scaler.transform(val.features.double()))
    factor = float(logits[0, 0]) / target[0, 0]
    assert factor > 0
    assert logits.numpy() == pytest.approx(target * factor, rel=1e-4, abs=1e-5)
    refitted = solution.refitted
    assert refitted is not None
    assert not torch.allclose(refitted.weight, solution.linear.weight)


def test_few_penalties_are_solved_as_many_are() -> None:
    train, val = rows(60, 1), rows(90, 2)
    for by in ("validation", "leave_one_out"):
        few = replace(RIDGE, penalty_by=by, penalty=(0.01, 1.0, 100.0))
        path = solve(few, train, val).path
        many = {point.penalty: point for point in solve(replace(few, penalty="auto"), train, val).path}
        for point in path:
            nearest = min(many, key=lambda penalty: abs(penalty / point.penalty - 1))
            assert point.scores["loss"] == pytest.approx(many[nearest].scores["loss"], rel=0.05)


def test_the_parts_of_a_solution_are_told() -> None:
    for settings in (RIDGE, replace(RIDGE, penalty=1.0, refit=True), replace(RIDGE, solver="logistic")):
        parts: list[str] = []
        Solver(settings, 3, report=parts.append).solve(rows(60, 1), rows(90, 2))
        assert len(parts) == count_parts(settings)


def test_logits_are_calibrated() -> None:
    train, val = rows(300, 1), rows(3000, 2)
    probabilities = solve(RIDGE, train, val).linear(val.features.double()).softmax(1)
    confidence, hits = probabilities.max(1).values, probabilities.argmax(1) == val.labels
    assert float(confidence.mean()) == pytest.approx(float(hits.double().mean()), abs=0.05)


def test_class_weights_count() -> None:
    train, val = rows(60, 1), rows(90, 2)
    rare = Rows(train.features[:43], torch.cat([train.labels[:3], torch.zeros(40, dtype=torch.long)]))
    recall = {}
    for power in (False, 0.5, True):
        linear = solve(replace(RIDGE, penalty=1.0, class_weights=power), rare, val).linear
        predicted = linear(val.features.double()).argmax(1)
        recall[power] = float((predicted[val.labels > 0] > 0).double().mean())
    assert recall[False] < recall[0.5] < recall[True]


def test_the_usual_penalties() -> None:
    assert solving.PENALTIES[0] == 1e-6
    assert len(solving.PENALTIES) == 45
