"""The training loop: what seeds decide, which epoch is best, and what happens if training diverges."""

from __future__ import annotations

import time

import pytest
from accelerate import Accelerator
from fits import TensorFeatures, script_validation, separable_features, train_head
from helpers import Make, small_model

from runner.training.callbacks.base import Callback
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.fit_state import FitState
from runner.training.loop import fit
from runner.training.results import EpochResult, best_epoch
from runner.utils.errors import DivergedError


def test_the_training_seed_decides(make: Make, accelerator: Accelerator) -> None:
    def losses(seed: int) -> list[float]:
        experiment = make("--seed.train", str(seed), "--schedule.kind", "constant")
        history, _ = train_head(experiment, small_model(seed), accelerator)
        return [epoch.train_loss for epoch in history]

    assert losses(0) == losses(0)
    assert not set(losses(0)) & set(losses(1))


def test_a_head_learns(make: Make, accelerator: Accelerator) -> None:
    history, _ = train_head(make("--train.epochs", "10", "--optim.lr", "0.003"), small_model(), accelerator)
    assert history[-1].train_loss < history[0].train_loss / 2
    assert history[-1].val["top1"] == 1


@pytest.mark.parametrize(("best", "number"), [("top1", 2), ("balanced_accuracy", 4)])
def test_the_best_epoch_is_the_first_with_the_highest_score(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, best: str, number: int
) -> None:
    script_validation(monkeypatch, [0.5, 0.7, 0.7, 0.6, 0.7], [0.5, 0.4, 0.6, 0.8, 0.8])
    experiment = make("--train.best", best, "--train.epochs", "5", "--schedule.kind", "constant")
    history, _ = train_head(experiment, small_model(), accelerator)
    assert best_epoch(history).number == number


def test_the_best_epoch_by_loss_is_the_first_with_the_lowest(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.9, 0.7, 0.6, 0.8], losses=[0.9, 0.4, 0.3, 0.3])
    experiment = make("--train.best", "loss", "--train.epochs", "4", "--schedule.kind", "constant")
    history, _ = train_head(experiment, small_model(), accelerator)
    assert [epoch.number for epoch in history if epoch.best] == [1, 2, 3]


def test_of_equally_accurate_epochs_the_one_with_the_lowest_loss_is_best(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.7, 1.0, 1.0, 1.0, 0.9], losses=[0.1, 0.9, 0.5, 0.5, 0.2])
    experiment = make("--train.epochs", "5", "--schedule.kind", "constant")
    history, _ = train_head(experiment, small_model(), accelerator)
    assert [epoch.number for epoch in history if epoch.best] == [1, 2, 3]
    assert best_epoch(history).number == 3


def test_the_time_of_features_is_measured_apart(make: Make, accelerator: Accelerator) -> None:
    values, labels = separable_features()

    def load(epoch: int) -> TensorFeatures:
        time.sleep(0.1 * (epoch == 0))
        return TensorFeatures(values)

    split = LabeledFeatures(load, labels)
    experiment = make("--train.epochs", "2", "--schedule.kind", "constant")
    first, second = fit(experiment, small_model(), FitData(split, split, 8), accelerator)
    assert 0.2 <= first.feature_seconds < first.seconds
    assert second.feature_seconds < 0.1


@pytest.mark.parametrize("epochs", [1, 3])
def test_divergence_is_an_error_that_names_the_learning_rate(
    make: Make, accelerator: Accelerator, epochs: int
) -> None:
    experiment = make("--optim.name", "sgd", "--optim.lr", "1e30", "--train.epochs", str(epochs))
    with pytest.raises(DivergedError, match=r"diverged.*optim\.lr \(1e\+30\)"):
        train_head(experiment, small_model(), accelerator)


def test_divergence_at_the_last_step_is_noticed(make: Make, accelerator: Accelerator) -> None:
    words = ("--optim.name", "sgd", "--optim.lr", "1e38", "--train.epochs", "1", "--train.batch_size", "64")
    with pytest.raises(DivergedError, match="diverged"):
        train_head(make(*words), small_model(), accelerator)


class Calls(Callback):
    """Notes the hooks that are called, and fails in one of them."""

    def __init__(self, name: str, calls: list[str], fails_in: str = "") -> None:
        self.name, self.calls, self.fails_in = name, calls, fails_in

    def note(self, hook: str) -> None:
        self.calls.append(f"{hook} {self.name}")
        if hook == self.fails_in:
            raise OSError("the disk is full")

    def on_fit_start(self, state: FitState) -> None:
        self.note("start")

    def on_epoch_end(self, state: FitState, result: EpochResult) -> None:
        assert state.history[-1] is result
        self.note(f"epoch {result.number}")

    def on_fit_end(self, state: FitState) -> None:
        self.note("end")

    def on_exception(self, state: FitState, error: BaseException) -> None:
        self.note("exception")

    def teardown(self, state: FitState) -> None:
        self.note("teardown")


@pytest.mark.parametrize(
    ("fails_in", "expected"),
    [
        ("", ["start a", "start b", "epoch 1 a", "epoch 1 b", "epoch 2 a", "epoch 2 b"]),
        ("epoch 2", ["start a", "start b", "epoch 1 a", "epoch 1 b", "epoch 2 a"]),
        ("end", ["start a", "start b", "epoch 1 a", "epoch 1 b", "epoch 2 a", "epoch 2 b", "end a"]),
        ("start", ["start a"]),
    ],
    ids=["success", "failure in an epoch", "failure at the end", "failure at the start"],
)
def test_callbacks_are_called_in_order_and_after_a_failure_in_reverse(
    make: Make, accelerator: Accelerator, fails_in: str, expected: list[str]
) -> None:
    values, labels = separable_features()
    split = LabeledFeatures(lambda epoch: TensorFeatures(values), labels)
    calls: list[str] = []
    callbacks = [Calls("a", calls, fails_in), Calls("b", calls)]
    experiment = make("--train.epochs", "2", "--schedule.kind", "constant")
    try:
        fit(experiment, small_model(), FitData(split, split, 8), accelerator, callbacks)
        ending = ["end a", "end b"]
    except OSError:
        # Before the first step there is no state to save.
        ending = [] if fails_in == "start" else ["exception b", "exception a"]
    assert calls == [*expected, *ending, "teardown a", "teardown b"]
    assert bool(fails_in) == (ending != ["end a", "end b"])
