"""train.stages: what follows from them, and what they must not be."""

from __future__ import annotations

import pytest

from runner.config.effective import note_on_idle_settings
from runner.config.parser import given_settings, parse
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
        (
            ["--train.stages", "[{epochs: 0, trainable: head}]"],
            "epochs of entry 1 must be a whole number > 0; it is 0",
        ),
        (["--train.stages", "[{epochs: 1}]"], "train.stages: entry 1 lacks trainable"),
        (
            ["--train.stages", "[{epochs: 1, trainable: head}, {epochs: 1, trainble: head}]"],
            r"train.stages: entry 2 has no setting 'trainble' \(did you mean 'trainable'\?\)",
        ),
        (
            ["--schedule.warmup", "6"],
            r"schedule.warmup \(6 epochs\) is longer than stage 1 of train.stages \(5\)",
        ),
    ],
)
def test_stages_that_are_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        parse([*["--train.stages", STAGES] * ("--train.stages" not in words), *words])


def test_a_warm_up_is_no_longer_than_the_shortest_stage() -> None:
    with pytest.raises(
        UserError, match=r"schedule.warmup \(6 epochs\) is longer than stage 1 of train.stages \(5\)"
    ):
        parse(["--train.stages", STAGES, "--schedule.warmup", "6"])
    with pytest.raises(UserError, match=r"schedule.warmup \(3 epochs\) is longer than the training \(2\)"):
        parse(["--epochs", "2", "--schedule.warmup", "3"])
    assert parse(["--train.stages", STAGES, "--schedule.warmup", "5"])[0].schedule.warmup == 5


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--train.ema_decay", "0.9", "--lr", "0.1"], "train.ema_decay"),
        (
            ["--augment.views", "none", "--augment.flip", "1"],
            "augment.flip (augment.views is none: images are not augmented)",
        ),
        (
            ["--train.solver", "ridge", "--model.head", "linear", "--augment.views=none", "--lr=0.1"],
            "optim.lr",
        ),
        (["--optim.layer-decay=0.5"], "optim.layer_decay"),
        (["--train.stages", STAGES, "--optim.layer-decay=0.5", "--cache", "x"], ""),
    ],
)
def test_settings_without_effect_are_noted(words: list[str], names: str) -> None:
    experiment, _ = parse(words)
    expected = f"without effect beside the other settings: {names}" if names else ""
    assert note_on_idle_settings(experiment, given_settings(words)) == expected
