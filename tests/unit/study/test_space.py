"""Search spaces: what a dimension contains, when it is searched, and how values get into an experiment."""

from __future__ import annotations

import math
from typing import Any

import pytest
from studies import CONDITIONAL, LR, MOMENTUM, OPTIMIZER, quickstart

from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten, override
from runner.study.space import Dimension, Space, same
from runner.utils.errors import UserError


@pytest.fixture(scope="module")
def baseline() -> Experiment:
    return quickstart()


@pytest.mark.parametrize(
    ("dimension", "inside", "outside"),
    [
        (Dimension("a", 0.5, 2.0), [0.5, 1, 2.0], [0.49, 2.01, "1", None, True, math.nan]),
        (Dimension("a", 1, 5, whole=True), [1, 3, 5, 3.0], [0, 6, 2.5, True]),
        (Dimension("a", 0.0, 0.3, step=0.1), [0.0, 0.1, 0.2, 0.3], [0.05, 0.15, 0.4]),
        (Dimension("a", 2, 10, whole=True, step=4), [2, 6, 10], [4, 8]),
        (Dimension("a", choices=(0, 1, "x", None)), [0, 1, 1.0, "x", None], [True, False, "y", 2]),
        (Dimension("a", choices=(True, False)), [True, False], [1, 0, None]),
    ],
)
def test_what_a_dimension_contains(dimension: Dimension, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not dimension.contains(value)] == []
    assert [value for value in outside if dimension.contains(value)] == []


def test_true_is_not_one() -> None:
    assert same(1, 1.0)
    assert same(None, None)
    assert not same(True, 1)
    assert not same(0, False)


def test_conditions_on_settings_that_are_not_searched_are_decided_by_the_baseline() -> None:
    momentum = Dimension(
        "optim.momentum", 0.5, 0.9, when=(("optim.name", ("sgd",)), ("optim.lr", (0.1, 0.2)))
    )
    nested = Dimension("train.clip", 0.0, 1.0, when=(("optim.momentum", (0.5,)),))
    rate = Dimension("optim.lr", choices=(0.1, 0.3))
    space = Space((rate, momentum, nested))
    assert space.within({"optim.name": "adam"}).settings == ["optim.lr"]
    searched = space.within({"optim.name": "sgd"})
    assert [dimension.when for dimension in searched.dimensions] == [(), momentum.when[1:], nested.when]


def test_a_setting_is_searched_if_its_condition_holds() -> None:
    def picked(name: str) -> dict[str, Any]:
        return CONDITIONAL.pick({}, lambda each: name if each.setting == "optim.name" else 0.7)

    assert picked("adam") == {"optim.name": "adam", "optim.lr": 0.7}
    assert picked("sgd") == {"optim.name": "sgd", "optim.lr": 0.7, "optim.momentum": 0.7}


def test_a_condition_may_name_a_setting_that_is_not_searched(baseline: Experiment) -> None:
    for name, expected in (("adam", {"optim.lr"}), ("sgd", {"optim.lr", "optim.momentum"})):
        settings = {**flatten(as_tree(baseline)), "optim.name": name}
        picked = Space((MOMENTUM, LR)).pick(settings, lambda each, settings=settings: settings[each.setting])
        assert set(picked) == expected


def test_the_baselines_value_of_a_setting_that_is_left_out_fulfils_no_condition(baseline: Experiment) -> None:
    clip = Dimension("train.clip", 0.0, 1.0, when=(("optim.momentum", (0.9,)),))
    settings = flatten(as_tree(baseline))
    assert settings["optim.momentum"] == 0.9
    picked = Space((OPTIMIZER, MOMENTUM, clip)).pick(settings, lambda each: settings[each.setting])
    assert set(picked) == {"optim.name"}


def test_a_condition_may_name_several_values() -> None:
    decay = Dimension("optim.weight_decay", 0.0, 1.0, when=(("optim.name", ("sgd", "adamw")),))
    for name, count in (("adam", 1), ("adamw", 2), ("sgd", 2)):
        picked = Space((OPTIMIZER, decay)).pick({}, lambda each, name=name: name if each.choices else 0.5)
        assert len(picked) == count


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"augment.crop": 224}, "augment.crop"),
        ({"train.accumulate": 65}, "train.accumulate"),
        ({"model.normalize": "weights"}, "model.weights"),
    ],
)
def test_a_combination_that_cannot_work_is_refused(
    values: dict[str, Any], named: str, baseline: Experiment
) -> None:
    with pytest.raises(UserError, match=named):
        override(baseline, values)
