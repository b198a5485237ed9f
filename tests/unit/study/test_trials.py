"""What trials are called, and what stored ones say about themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial
from studies import quickstart

from runner.study.trials import RunningTrial, count_states, is_lost, is_sound, short_values
from runner.tracking.process_identity import ProcessIdentity


def trial(
    state: TrialState = TrialState.COMPLETE, value: float | None = 0.5, **attributes: Any
) -> FrozenTrial:
    value = value if state == TrialState.COMPLETE else None
    return create_trial(state=state, value=value, user_attrs=attributes)


def test_values_in_short() -> None:
    values = {"optim.lr": 0.000312345, "optim.name": "sgd", "train.batch_size": 64, "train.clip": None}
    assert short_values(values) == "lr=0.000312 name=sgd batch_size=64 clip=None"


def test_a_run_is_named_by_its_values() -> None:
    assert RunningTrial(7, {"optim.lr": 0.01}, quickstart(), is_baseline=False).name == "trial 7: lr=0.01"
    assert RunningTrial(0, {"optim.lr": 0.01}, quickstart(), is_baseline=True).name == "trial 0: baseline"


def test_a_lost_trial_is_none_that_failed_by_itself() -> None:
    assert is_lost(trial(TrialState.FAIL, lost="its worker died"))
    assert is_lost(trial(TrialState.FAIL))
    assert not is_lost(trial(TrialState.FAIL, reason="the loss is not finite"))
    assert not is_lost(trial())


def test_states_are_counted() -> None:
    trials = [trial(), trial(TrialState.PRUNED), trial(), trial(TrialState.FAIL, lost="its worker died")]
    assert count_states(trials) == "2 complete, 1 pruned, 1 lost"
    assert count_states([]) == ""


@pytest.mark.parametrize(
    "owner",
    [{}, [], ["host", 1], ["host", "1", 1.0], [1, 1, 1.0], ["host", True, 1.0], ["host", 1, None], "host"],
)
def test_a_damaged_owner_is_noticed(owner: Any) -> None:
    me = ProcessIdentity.current()
    assert is_sound(trial())
    assert is_sound(trial(owner=[me.host, me.pid, me.started]))
    assert not is_sound(trial(owner=owner))


def test_a_damaged_value_is_noticed() -> None:
    damaged = trial()
    damaged.values = [math.inf]
    assert not is_sound(damaged)
