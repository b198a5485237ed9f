"""The tables of sampling and pruning algorithms, grids, and distributions."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
from optuna.pruners import BasePruner, MedianPruner, NopPruner, WilcoxonPruner
from optuna.samplers import BaseSampler, RandomSampler
from studies import CONDITIONAL, GRID, SPACE

from runner.study import algorithms, options
from runner.study.algorithms import PRUNERS, SAMPLERS, Algorithm, check_sampler
from runner.study.grid import GridSampler, grid_points
from runner.study.seeded_sampler import SeededSampler
from runner.study.space import Dimension
from runner.study.trials import to_distribution
from runner.utils.errors import UserError


@pytest.mark.parametrize(
    ("dimension", "expected"),
    [
        (Dimension("a", choices=("x", None)), ["x", None]),
        (Dimension("a", 1, 3, whole=True), [1, 2, 3]),
        (Dimension("a", 1e-4, 1.0, log=True), [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (Dimension("a", 0.0, 1.0), [0, 0.25, 0.5, 0.75, 1]),
        (Dimension("a", 1, 100, whole=True), [1, 26, 50, 75, 100]),
        (Dimension("a", 0.0, 0.5, step=0.125), [0, 0.125, 0.25, 0.375, 0.5]),
        (Dimension("a", 0.0, 0.3, step=0.1), [0, 0.1, 0.2, 0.3]),
    ],
)
def test_the_points_of_a_grid(dimension: Dimension, expected: list[Any]) -> None:
    points = grid_points(dimension)
    assert points == (expected if dimension.choices else pytest.approx(expected))
    assert all(dimension.contains(value) for value in points)
    distribution = to_distribution(dimension)
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in points)


def test_a_grid_has_each_point_once_where_a_setting_is_searched_on_a_condition() -> None:
    points = GridSampler(CONDITIONAL, 0).points
    assert len(points) == 2 * 5 + 5 * 5, "adam and adamw with five rates, sgd also with five momenta"
    assert len({str(sorted(point.items())) for point in points}) == len(points)
    for point in points:
        assert ("optim.momentum" in point) == (point["optim.name"] == "sgd")
    assert GridSampler(CONDITIONAL, 1).points != points


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_can_be_built(name: str) -> None:
    for space in (SPACE, GRID, CONDITIONAL):
        assert isinstance(SAMPLERS[name].build(space, 1), BaseSampler)


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_can_be_built(name: str) -> None:
    for epochs, seeds in ((1, 1), (100, 1), (20, 2), (20, 5)):
        assert isinstance(PRUNERS[name](epochs, seeds), BasePruner)


def test_the_automatic_pruner_depends_on_the_seeds() -> None:
    assert isinstance(PRUNERS["auto"](20, 1), MedianPruner)
    assert isinstance(PRUNERS["auto"](20, 3), WilcoxonPruner)


def test_an_algorithm_is_added_by_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert algorithms.SAMPLERS is options.SAMPLERS
    monkeypatch.setitem(SAMPLERS, "mine", Algorithm(lambda space, seed: RandomSampler(seed=seed)))
    monkeypatch.setitem(PRUNERS, "mine", lambda epochs, seeds: NopPruner())
    parsed, _ = options.parse(["--study", "some", "--sampler", "mine", "--pruner", "mine"])
    assert (parsed.sampler, parsed.pruner) == ("mine", "mine")
    check_sampler("mine")
    assert isinstance(SeededSampler("mine", SPACE, 0)._inner, RandomSampler)


@pytest.mark.parametrize(("name", "package"), [("cmaes", "cmaes"), ("gp", "scipy")])
def test_a_sampler_whose_package_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    check_sampler(name)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda each, *_: None if each == package else find(each))
    with pytest.raises(UserError, match=f"{name} needs the package {package}: pip install"):
        check_sampler(name)
    check_sampler("tpe")
