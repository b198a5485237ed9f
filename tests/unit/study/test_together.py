"""Trials that are trained together, with made-up trainings: what becomes of them when the worker is interrupted."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import Make

from runner.study import together
from runner.study.trial_training import TrialTraining
from runner.utils.signals import Interrupted, interrupt_on_signals, stop_signals

POOLED = ("--model.trainable", "head", "--model.head", "pooled")


@pytest.fixture(autouse=True)
def _restored_handlers() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in stop_signals()}
    interrupt_on_signals()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def trainings(make: Make, monkeypatch: pytest.MonkeyPatch) -> Sequence[TrialTraining]:
    """Three trainings that end after the same epoch; the trial of the last one has another training after it."""
    model: Any = SimpleNamespace(frozen_state=dict, named_parameters=list)
    setup: Any = SimpleNamespace(experiment=make(*POOLED), model=model, accelerator=None)

    def fit_stacked(heads: Sequence[Any], _data: object, _accelerator: object, after_epoch: Any) -> None:
        for head in heads:
            head.on_end(None)
        after_epoch()

    monkeypatch.setattr(together, "fit_stacked", fit_stacked)
    monkeypatch.setattr(together.run, "fit_data", lambda _: None)
    tracker: Any = None
    return [TrialTraining(setup, tracker, "", print, is_last=index < 2) for index in range(3)]


def test_an_interrupt_loses_no_trial_that_has_done_all_its_trainings(
    trainings: Sequence[TrialTraining],
) -> None:
    stored: list[int] = []
    stopped: list[int] = []

    def trial(index: int) -> Iterator[TrialTraining]:
        try:
            yield trainings[index]
            if index == 0:
                signal.raise_signal(signal.SIGTERM)
            stored.append(index)
        except Interrupted:
            stopped.append(index)
            raise

    trials: Any = [trial(index) for index in (0, 1, 2)]
    with pytest.raises(Interrupted):
        together.train_together(trials)
    assert (stored, stopped) == ([0, 1], [2])


def test_a_trial_can_be_interrupted_while_it_prepares_another_training(
    trainings: Sequence[TrialTraining],
) -> None:
    stored: list[int] = []

    def trial(index: int) -> Iterator[TrialTraining]:
        yield trainings[index]
        if index == 2:
            signal.raise_signal(signal.SIGTERM)
        stored.append(index)

    trials: Any = [trial(index) for index in (2, 1)]
    with pytest.raises(Interrupted):
        together.train_together(trials)
    assert stored == [1]


def test_trainings_that_can_be_stacked_are_grouped_in_rounds(
    trainings: Sequence[TrialTraining], make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[int] = []
    fit_stacked = together.fit_stacked

    def watch(heads: Any, *arguments: Any) -> None:
        groups.append(len(heads))
        fit_stacked(heads, *arguments)

    def trial(batch_size: int) -> Iterator[TrialTraining]:
        for first in trainings[:2]:
            experiment = make(*POOLED, "--train.batch_size", str(batch_size))
            setup: Any = SimpleNamespace(**{**vars(first.setup), "experiment": experiment})
            yield dataclasses.replace(first, setup=setup, is_last=first is trainings[1])

    monkeypatch.setattr(together, "fit_stacked", watch)
    trials: Any = [trial(size) for size in (8, 16, 8, 16, 8)]
    together.train_together(trials)
    assert groups == [3, 2, 3, 2]
