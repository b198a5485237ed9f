"""train.stages: what follows from them, and what they must not be."""

from __future__ import annotations

import pytest

from runner.config.parser import parse
from runner.config.tree import as_tree, from_tree, override
from runner.utils.errors import UserError

STAGES = "[{epochs: 5, trainable: head}, {epochs: 10, trainable: last:1, lr: 0.0001}]"


def test_epochs_and_what_trains_follow_the_stages() -> None:
    experiment, _ = parse(["--train.stages", STAGES])
    assert (experiment.train.epochs, experiment.model.trainable) == (15, "last:1")
    assert [experiment.train.stage_of(epoch) for epoch in (0, 4, 5, 14, 15)] == [0, 0, 1, 1, 1]
    assert [stage.lr for stage in experiment.stages] == [None, 1e-4]


def test_in_a_file_too() -> None:
    stages = [{"epochs": 2, "trainable": "head"}, {"epochs": 1, "trainable": "all"}]
    tree = {"train": {"stages": stages}, "data": {"kind": "digits"}}
    experiment = from_tree(tree)
    assert (experiment.train.epochs, experiment.model.trainable) == (3, "all")
    assert from_tree(as_tree(experiment)) == experiment


def test_other_stages_replace_them() -> None:
    experiment, _ = parse(["--train.stages", STAGES])
    other = override(experiment, {"train.stages": [{"epochs": 2, "trainable": "head"}]})
    assert (other.train.epochs, other.model.trainable) == (2, "head")


def test_without_stages_all_epochs_are_one() -> None:
    experiment, _ = parse(["--epochs", "7", "--model.trainable", "last:1"])
    (stage,) = experiment.stages
    assert (stage.epochs, stage.trainable, stage.lr) == (7, "last:1", None)
    assert experiment.train.stage_of(6) == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--epochs", "16"],
            r"have 15 epochs together, which do not reach train.epochs \(16\); set train.epochs=15",
        ),
        (["--epochs", "14"], r"have 15 epochs together, which exceed train.epochs \(14\)"),
        (
            ["--model.trainable", "all"],
            "the last stage of train.stages trains last:1, but model.trainable is all",
        ),
        (["--train.solver", "ridge", "--model.head", "linear"], "train.stages needs train.solver=gradient"),
        (
            ["--train.stages", "5"],
            "train.stages must be a list of {epochs: a whole number > 0, trainable: text",
        ),
        (["--train.stages", "[{epochs: 0, trainable: head}]"], "train.stages must be a list"),
        (["--train.stages", "[{epochs: 1}]"], "train.stages must be a list"),
        (["--train.stages", "[{epochs: 1, trainable: head, x: 1}]"], "train.stages must be a list"),
    ],
)
def test_stages_that_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse([*["--train.stages", STAGES] * ("--train.stages" not in words), *words])
