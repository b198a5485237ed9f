"""An interrupted training continues as if nothing had happened: the same history and weights, to the last bit."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from fits import script_validation, separable_features
from interrupted_fits import (
    BATCHES,
    EPOCHS,
    EVERY_STEP,
    NewTraining,
    Stop,
    Training,
    without_times,
)

from runner.config.schema import CheckpointsConfig
from runner.training import fit_state
from runner.training.snapshot import load_newest
from runner.utils.errors import UserError
from runner.utils.signals import Interrupted

PLACES = [
    *(Stop("train", number) for number in range(1, EPOCHS * BATCHES + 1)),
    *(Stop(where, number) for where in ("val", "epoch") for number in range(1, EPOCHS + 1)),
]
"""Every place at which a small training can be interrupted."""
KINDS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "adam, reduce_on_drop": (["--schedule.kind", "reduce_on_drop", "--schedule.reductions", "9"], {}),
    "adamw, cosine, clipped": (
        [*("--optim.name", "adamw", "--schedule.kind", "cosine"), *("--train.clip", "0.5")],
        {},
    ),
    "sgd, onecycle": (["--optim.name", "sgd", "--schedule.kind", "onecycle"], {}),
    "sgd, constant, weighted, balanced": (
        [
            *("--optim.name", "sgd", "--schedule.kind", "constant", "--train.class_weights", "true"),
            *("--train.sampling", "balanced", "--train.label_smoothing", "0.1"),
        ],
        {},
    ),
    "accumulated, groups": (["--train.accumulate", "2", "--optim.groups", '{"classifier.4": 0.001}'], {}),
    "warm-up, ema": (
        [
            *("--schedule.kind", "cosine", "--schedule.warmup_steps", "4", "--schedule.floor", "0.1"),
            *("--train.average", "ema", "--train.ema_decay", "0.6", "--train.mixup", "0.3"),
        ],
        {},
    ),
    "swa": (["--schedule.kind", "constant", "--train.average", "swa", "--train.swa_start", "0.3"], {}),
    "classifier head, skipping": (["--train.nonfinite", "skip"], {"head": "classifier"}),
    "stops early": (["--schedule.kind", "reduce_on_drop", "--schedule.reductions", "1"], {}),
}
"""Settings, and fields of the model."""


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if KINDS[kind][1] else []) for kind in KINDS]
)
def test_continues_from_every_place(new_training: NewTraining, tmp_path: Path, kind: str) -> None:
    words, model_fields = KINDS[kind]
    values, labels = separable_features()
    if model_fields:  # that head starts with layers of 4096 values
        values = values.repeat(1, 8)
    training = new_training(*words, views=([values, values + 0.1], labels), **model_fields)
    whole = training.run()
    if kind == "adam, reduce_on_drop":
        assert whole.history[1].lr_reduced, "the state of the schedule matters"
    reached, micro_batches = 0, 2 if kind.startswith("accumulated") else 1
    for number, stop in enumerate(PLACES):
        folder = tmp_path / str(number)
        part = training.run(folder, stop)
        if part.error is None:
            assert kind == "stops early"
            part.assert_equal(whole)
            continue
        assert isinstance(part.error, Interrupted)
        reached += 1
        snapshot, _ = load_newest(folder)
        assert snapshot is not None
        epoch, batch = divmod((stop.number - 1) // micro_batches, BATCHES)
        expected = {
            "train": (epoch, batch + 1),  # the step is completed
            "val": (stop.number - 1, BATCHES),
            "epoch": (stop.number, 0),
        }
        assert (snapshot.epoch, snapshot.batch) == expected[stop.where], stop
        resumed = training.run(folder)
        assert resumed.error is None
        resumed.assert_equal(whole)
    assert reached >= (3 if kind == "stops early" else len(PLACES))


@pytest.mark.slow
def test_a_model_that_trains_as_a_whole_continues(new_training: NewTraining, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (12, 3, 32, 32), dtype=torch.uint8, generator=generator)
    views = [images, images.flip(3)], [index % 3 for index in range(12)]
    training = new_training("--train.epochs", "2", views=views, trainable="all")
    whole = training.run()
    for number, stop in enumerate([Stop("val", 1), Stop("train", 4)]):
        folder = tmp_path / str(number)
        assert isinstance(training.run(folder, stop).error, Interrupted)
        training.run(folder).assert_equal(whole)


def test_continues_after_every_step(training: Training, tmp_path: Path) -> None:
    whole, interruptions = training.run(), 0
    while isinstance((part := training.run(tmp_path, Stop("train", 1))).error, Interrupted):
        interruptions += 1
    assert interruptions == EPOCHS * BATCHES
    part.assert_equal(whole)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 9])
def test_continues_after_an_unreadable_image(
    new_training: NewTraining, tmp_path: Path, accumulate: int, number: int
) -> None:
    training = new_training("--train.accumulate", str(accumulate))
    stopped = training.run(tmp_path, Stop("train", number, "error"), EVERY_STEP)
    assert isinstance(stopped.error, UserError)
    snapshot, _ = load_newest(tmp_path)
    steps = (number - 1) // accumulate  # an image is loaded before its micro-batch is computed
    assert (snapshot.step if snapshot else 0) == steps
    training.run(tmp_path).assert_equal(training.run())


@pytest.mark.parametrize("number", range(1, EPOCHS + 1))
def test_continues_after_another_process_was_lost_between_two_epochs(
    new_training: NewTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """While the processes agree on the scores: the epoch is trained, but not validated yet."""
    training = new_training("--schedule.kind", "reduce_on_drop", "--schedule.reductions", "9")
    whole = training.run()
    calls = itertools.count(1)

    def agree(values: list[Any]) -> list[Any]:
        if next(calls) == number:
            raise RuntimeError("Connection closed by peer")
        return values

    monkeypatch.setattr(fit_state, "broadcast_object_list", agree)
    assert isinstance(training.run(tmp_path).error, RuntimeError)
    snapshot, _ = load_newest(tmp_path)
    assert snapshot is not None
    assert (snapshot.epoch, snapshot.batch) == (number - 1, BATCHES)
    training.run(tmp_path).assert_equal(whole)


@pytest.mark.parametrize("how", ["signal", "error"])
@pytest.mark.parametrize("number", range(1, EPOCHS + 1))
def test_continues_after_a_callback_failed(training: Training, tmp_path: Path, how: str, number: int) -> None:
    stopped = training.run(tmp_path, Stop("epoch", number, how))
    assert isinstance(stopped.error, Interrupted if how == "signal" else UserError)
    training.run(tmp_path).assert_equal(training.run())


def test_writing_snapshots_changes_nothing(training: Training, tmp_path: Path) -> None:
    training.run(tmp_path, settings=EVERY_STEP).assert_equal(training.run())


def test_a_tie_is_broken_by_the_loss_of_an_epoch_before_the_interruption(
    new_training: NewTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = new_training("--schedule.kind", "constant")
    script_validation(monkeypatch, [0.9, 0.9, 0.9], losses=[0.5, 0.7, 0.4])
    training.run(tmp_path, Stop("epoch", 1))
    resumed = training.run(tmp_path)
    assert resumed.error is None
    assert [epoch.best for epoch in resumed.history] == [True, False, True]


def test_a_finished_training_stays_finished(training: Training, tmp_path: Path) -> None:
    whole = training.run(tmp_path)
    training.run(tmp_path, Stop("train", 1)).assert_equal(whole)


def test_the_same_training_twice_is_the_same_in_every_bit(training: Training) -> None:
    """What the other tests here rely on."""
    training.run().assert_equal(training.run())


def test_other_layers_are_refused(training: Training, new_training: NewTraining, tmp_path: Path) -> None:
    training.run(tmp_path)
    other = new_training(width=8).run(tmp_path)
    assert isinstance(other.error, UserError)
    assert "trains other layers" in str(other.error)


def test_a_branch_repeats_the_interrupted_epoch_with_its_own_settings(
    new_training: NewTraining, tmp_path: Path
) -> None:
    training = new_training("--schedule.kind", "constant")
    whole = training.run()
    training.run(tmp_path, Stop("train", 5))
    branch = training.run(tmp_path, settings=CheckpointsConfig(keep=9), branch=True)
    assert branch.error is None
    assert without_times(branch.history)[:1] == without_times(whole.history)[:1]
    assert len(branch.history) == EPOCHS
    assert without_times(branch.history)[1] != without_times(whole.history)[1], "two batches count twice"


@pytest.mark.parametrize("kind", ["reduce_on_drop", "cosine", "onecycle", "constant"])
def test_a_branch_has_its_own_learning_rate(new_training: NewTraining, tmp_path: Path, kind: str) -> None:
    new_training("--schedule.kind", "constant").run(tmp_path, Stop("epoch", 1))
    training = new_training("--schedule.kind", kind, "--optim.lr", "0.002", "--optim.name", "sgd")
    branch, whole = training.run(tmp_path, branch=True), training.run()
    assert branch.error is None
    assert branch.history[1].lr == pytest.approx(whole.history[1].lr)
