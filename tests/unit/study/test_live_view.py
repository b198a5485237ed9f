"""What is said at the start of a study, and after each trial."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from runner.study import live_view
from runner.study.live_view import LiveView
from runner.study.outages import DatabaseAwayError, Outage
from runner.utils.console import Terminal


@pytest.mark.parametrize(
    ("states", "progress"),
    [
        ([], "4 trials, the baseline first"),
        ([TrialState.WAITING], "4 trials, the baseline first"),
        (
            [TrialState.COMPLETE, TrialState.COMPLETE, TrialState.WAITING],
            "2 complete, 1 waiting; 4 trials in total",
        ),
    ],
)
def test_the_first_line_tells_a_new_study_from_a_continued_one(
    capsys: pytest.CaptureFixture[str], states: list[TrialState], progress: str
) -> None:
    trials = [create_trial(state=state, value=1.0 if state.is_finished() else None) for state in states]
    study: Any = SimpleNamespace(plan=SimpleNamespace(name="some", trials=4), trials=lambda: trials)
    with LiveView(study, Terminal()):
        pass
    assert capsys.readouterr().out == f"study some: {progress}\n"


@pytest.mark.parametrize(("together", "left"), [(1, ["", "0:20", "0:10", ""]), (2, ["", "", "", ""])])
def test_the_time_left_is_that_of_trials_after_the_first_and_counts_those_that_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], together: int, left: list[str]
) -> None:
    """A minute for the first trials, whose features are computed, then ten seconds; all trials run from the start."""
    now = 0.0
    monkeypatch.setattr(live_view.time, "monotonic", lambda: now)
    trials = [create_trial(state=TrialState.RUNNING) for _ in range(4)]
    study: Any = SimpleNamespace(
        plan=SimpleNamespace(name="some", trials=4),
        trials=lambda: trials,
        best_trial=None,
        outage=Outage("some"),
    )
    with LiveView(study, Terminal()) as view:
        for done in range(together, 5, together):
            now += 60 if done == together else 10
            trials[:done] = [create_trial(value=0.5) for _ in range(done)]
            for number, trial in enumerate(trials):
                trial.number = number
            view.refresh()
    lines = capsys.readouterr().out.splitlines()[1:]
    said = [re.search(r"6.0 trials/min, (.*) left$", line) for line in lines]
    assert [each[1] if each else "" for each in said] == left
    assert not any("left" in line for line, each in zip(lines, said, strict=True) if not each)


def test_a_database_that_is_away_is_not_waited_for() -> None:
    """The command that shows the trials must see how its workers end."""
    outage, started = Outage("some"), [create_trial(state=TrialState.RUNNING)]

    def trials() -> Any:
        if outage.patience:
            return started
        raise DatabaseAwayError("It does not answer.")

    study: Any = SimpleNamespace(plan=SimpleNamespace(name="some", trials=4), trials=trials, outage=outage)
    with LiveView(study, Terminal()) as view:
        view.refresh()
    assert outage.patience > 0
