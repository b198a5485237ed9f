"""Whole studies that are disturbed: killed workers, stopped commands, and two commands on one study."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from commands import command, runner
from helpers import Place
from optuna.trial import TrialState
from searches import (
    LONG,
    PATIENCE,
    artifacts_of,
    confirmed_sides,
    output_of,
    runs_of_study,
    start_search,
    states,
    study_words,
    trial_runs,
    trials_of,
    wait_for_trial,
)

from runner.study.trials import is_baseline

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_environment")]


def journals(folder: Path) -> list[Path]:
    return list((folder / "mlruns" / "journals").iterdir())


def test_a_killed_worker_loses_one_trial(place: Place, tmp_path: Path) -> None:
    words = [*study_words(place(tmp_path), tmp_path / "space.yaml"), *LONG, "--trials", "4", "--workers", "2"]
    process = start_search(words, tmp_path)
    while True:  # stop it in a trial, and only then kill it
        victim = wait_for_trial(process, tmp_path)
        pid = victim.user_attrs["owner"][1]
        assert pid != process.pid
        os.kill(pid, signal.SIGSTOP)
        if trials_of(tmp_path)[victim.number].state == TrialState.RUNNING:
            break
        os.kill(pid, signal.SIGCONT)
    os.kill(pid, signal.SIGKILL)
    status = process.wait(PATIENCE)
    output = output_of(tmp_path)
    assert status == 0, output
    assert f"was killed by SIGKILL; its trial {victim.number} is tried again once" in " ".join(output.split())
    assert sorted(states(tmp_path)) == [*["COMPLETE"] * 4, "LOST"]
    trials = trials_of(tmp_path)
    lost = trials[victim.number]
    assert lost.state == TrialState.FAIL
    assert lost.user_attrs["lost"] == "its worker died"
    (again,) = (trial for trial in trials if trial.user_attrs.get("retry") == victim.number)
    assert again.params == lost.params
    parent, _ = runs_of_study(tmp_path)
    assert parent.info.status == "FINISHED"
    statuses = {number: run.info.status for number, run in trial_runs(tmp_path).items()}
    assert statuses.pop(victim.number) == "KILLED"
    assert set(statuses.values()) == {"FINISHED"}
    assert journals(tmp_path) == []


def test_a_stopped_study_continues(place: Place, tmp_path: Path) -> None:
    """It is stopped by one Ctrl-C, then by SIGTERM, then not at all."""
    words = [*study_words(place(tmp_path), tmp_path / "space.yaml"), *LONG, "--trials", "6", "--workers", "2"]
    process = start_search(words, tmp_path)
    running = wait_for_trial(process, tmp_path)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) == 130, output_of(tmp_path)
    assert "the same command continues it" in output_of(tmp_path)
    assert "Traceback" not in output_of(tmp_path)
    after = states(tmp_path)
    assert set(after) <= {"COMPLETE", "WAITING"}, "running trials were completed"
    assert after[running.number] == "COMPLETE"
    assert after.count("COMPLETE") < 6
    parent, children = runs_of_study(tmp_path)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in children} == {"FINISHED"}

    process = start_search(words, tmp_path)
    running = wait_for_trial(process, tmp_path, after=running.number)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE) == 128 + signal.SIGTERM, output_of(tmp_path)
    assert "RUNNING" not in states(tmp_path)
    lost = trials_of(tmp_path)[running.number]
    assert lost.user_attrs.get("lost") == "stopped by SIGTERM", "it did not wait for the trial"
    parent, children = runs_of_study(tmp_path)
    assert parent.info.status == "KILLED"
    assert {run.info.status for run in children} == {"FINISHED", "KILLED"}
    complete = states(tmp_path).count("COMPLETE")

    done = command(runner("search", *words))
    assert done.returncode == 0, done.stderr
    assert f"{complete} complete" in done.stdout
    assert states(tmp_path).count("COMPLETE") == 6
    assert set(states(tmp_path)) == {"COMPLETE", "LOST"}
    assert lost.params in [
        trial.params for trial in trials_of(tmp_path) if trial.state == TrialState.COMPLETE
    ]
    parent, children = runs_of_study(tmp_path)
    assert parent.info.status == "FINISHED"
    assert "RUNNING" not in {run.info.status for run in children}
    assert journals(tmp_path) == []


def test_two_commands_share_a_study(place: Place, tmp_path: Path) -> None:
    words = [*study_words(place(tmp_path), tmp_path / "space.yaml"), "--trials", "6", "--confirm", "1"]
    processes = [start_search(words, tmp_path) for _ in range(2)]
    statuses = [process.wait(PATIENCE) for process in processes]
    assert statuses == [0, 0], output_of(tmp_path)
    assert states(tmp_path) == ["COMPLETE"] * 6
    assert [trial.number for trial in trials_of(tmp_path) if is_baseline(trial)] == [0]
    parent, children = runs_of_study(tmp_path)
    assert parent.info.status == "FINISHED"
    assert {run.info.status for run in children} == {"FINISHED"}
    assert sorted(trial_runs(tmp_path)) == list(range(6))
    assert len(children) == 6 + len(confirmed_sides(tmp_path)), "the report was written once"
    assert "best.yaml" in artifacts_of(tmp_path, parent)
