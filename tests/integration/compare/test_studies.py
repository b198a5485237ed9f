"""`runner compare` of the trials of a study, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import one_sentence

from runner.tracking.mlflow_server import TrackingServer

Add = Callable[..., str]


Command = Callable[..., tuple[int, str, str]]


pytestmark = pytest.mark.usefixtures("no_tracking_uri")


@pytest.fixture
def refusal(command: Command) -> Callable[..., str]:
    """`refusal(words…)`: the sentence with which `runner compare` refuses them."""

    def call(*words: str) -> str:
        status, _, errors = command(*words)
        assert status == 2, errors
        return one_sentence(errors)

    return call


@pytest.fixture
def study(add: Add) -> Callable[..., tuple[str, list[str]]]:
    """`study(name, objective, values)`: its run and those of its trials; the first trial is the baseline."""

    def create(name: str, objective: str, values: list[float]) -> tuple[str, list[str]]:
        parent = add(f"study {name}", {"study.objective": objective}, tags={"runner.study": name})
        trials = []
        for number, value in enumerate(values):
            tags = {"runner.study": name, "runner.trial": str(number), "mlflow.parentRunId": parent}
            words = f"lr={number}" if number else "baseline"
            trials.append(
                add(f"trial {number}: {words}", {"optim.lr": number}, {"objective": value}, tags=tags)
            )
        return parent, trials

    return create


def test_a_study_compares_its_baseline_and_best_trials(
    add: Add, study: Callable[..., Any], command: Command
) -> None:
    parent, trials = study("night", "top1", [0.1, *(0.5 + 0.01 * number for number in range(9))])
    tags = {"runner.study": "night", "mlflow.parentRunId": parent}
    add("trial 20: pruned", {}, tags={**tags, "runner.trial": "20", "runner.pruned": "at epoch 1"})
    add("trial 21: stopped", {}, {"objective": 0.99}, tags={**tags, "runner.trial": "21"}, status="KILLED")
    add("confirm best, seed 5", {}, {"objective": 0.99}, tags={**tags, "runner.confirms": "best"})
    status, out, errors = command("--study", "night", "--json")
    assert status == 0
    result = json.loads(out)
    assert [each["run"] for each in result["runs"]] == [trials[0], *trials[:2:-1]]
    assert result["metrics"]["objective"]["best"] == [trials[-1]]
    assert "baseline and the best 7 of 10 finished trials of study night" in errors
    assert all(each["problem"].endswith("has no predictions") for each in result["paired"])


def test_a_study_may_minimize_the_loss(study: Callable[..., Any], command: Command) -> None:
    _, trials = study("loss", "loss", [0.9, 0.3, 0.1, 0.2])
    _, out, _ = command("--study", "loss", "--json")
    result = json.loads(out)
    assert [each["run"] for each in result["runs"]] == [trials[0], trials[2], trials[3], trials[1]]
    assert result["metrics"]["objective"]["best"] == [trials[2]]


def test_unknown_and_short_studies_are_refused(
    study: Callable[..., Any], refusal: Callable[..., str]
) -> None:
    study("evening", "top1", [0.5])
    assert "There is no study 'evenin' (did you mean 'evening'?)" in refusal("--study", "evenin")
    assert "has 1 finished trial, too few" in refusal("--study", "evening")


def test_bad_command_lines_are_refused(refusal: Callable[..., str]) -> None:
    assert "two runs or more, not 1;" in refusal("one")
    assert "two runs or more, not none;" in refusal()
    assert "not both" in refusal("one", "two", "--study", "night")
    assert "--nope" in refusal("a", "b", "--nope")


def test_unknown_and_repeated_runs_are_refused(add: Add, refusal: Callable[..., str], tmp_path: Path) -> None:
    run = add("there")
    assert "There is no run 'nowhere'" in refusal(run, "nowhere")
    assert "is given twice" in refusal(run, run[:10])
    assert not (tmp_path / "out").exists()


def test_a_missing_store_is_refused(refusal: Callable[..., str], tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal("one", "two", "--tracking.root", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_a_folder_that_cannot_be_written_is_refused(
    add: Add, refusal: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = add("w1"), add("w2")
    (tmp_path / "file").write_text("")
    for name in ("file", "file/inside"):
        assert "is not a folder" in refusal(*runs, "--out", str(tmp_path / name))
    access = os.access  # root may write anywhere
    monkeypatch.setattr(
        os, "access", lambda path, mode: access(path, mode) and Path(path) != tmp_path / "out"
    )
    assert str(tmp_path / "out") in refusal(*runs)


def test_files_stay_on_disk_if_mlflow_does_not_accept_them(
    store: tuple[TrackingServer, Any],
    add: Add,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("away")

    runs = add("s1"), add("s2")
    monkeypatch.setattr(type(store[1]), "log_artifact", fail)
    status, out, _ = command(*runs)
    assert status == 0
    assert "MLflow did not accept the comparison" in out
    assert "(away)" in out
    assert (tmp_path / "out" / "comparison.html").exists()


def test_torch_is_not_imported() -> None:
    code = "import sys, runner.cli.compare; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
