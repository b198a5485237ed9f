"""What is said at the start of a study."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from optuna.trial import TrialState, create_trial

from runner.study.live_view import LiveView
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
