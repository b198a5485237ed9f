"""`runner runs`: lists runs with scores and links, deletes them, and chooses a champion."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient
from stores import Store, status

from runner.cli import runs
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.utils.console import Terminal
from runner.utils.exit_status import run_main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(mlflow_store: Store, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command: its status, output and errors."""

    def call(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run_main(lambda: runs.main([*words, "--tracking.root", str(mlflow_store[0].root)]))
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return code, printed.out, " ".join(printed.err.split())

    return call


@pytest.fixture
def some_runs(mlflow_store: Store, silent: Terminal) -> dict[str, str]:
    """The ids of two trainings of two experiments, and of a run with a child, by name."""
    ids: dict[str, str] = {}

    def log(experiment: str, name: str, top1: float | None = None, parent: str = "") -> None:
        request = RunRequest(experiment, name, parent_id=parent)
        with track_run(*mlflow_store, request, silent) as tracker:
            if top1 is not None:
                tracker.log_metrics({"val/best/top1": top1, "test/best/top1": top1 - 0.1})
        ids[name] = tracker.run_id

    log("birds", "vgg16-pooled lr=3e-4 seed=0", 0.912345)
    log("birds", "seeds")
    log("birds", "seed 1 of seeds", 0.5, ids["seeds"])
    log("plants", "vgg11 lr=0.01 seed=0")
    return ids


def listed(run: Run, *words: str) -> list[dict[str, Any]]:
    code, output, _ = run("--json", *words)
    assert code == 0
    rows: list[dict[str, Any]] = json.loads(output)
    return rows


def test_runs_are_listed_with_scores(run: Run, some_runs: dict[str, str]) -> None:
    code, output, _ = run()
    assert code == 0
    assert max(map(len, output.splitlines())) <= 120
    for text in (
        "Runs, the newest first",
        some_runs["vgg11 lr=0.01 seed=0"][:8],
        "0.9123",
        "0.8123",
        "plants",
        "finished",
    ):
        assert text in output
    assert "seed 1 of" not in output
    assert "-n lists more" not in output
    assert "-n lists more" in run("-n", "2")[1]
    assert "?workflowType=machine_learning" in output


def test_the_list_is_filtered_and_limited(run: Run, some_runs: dict[str, str], mlflow_store: Store) -> None:
    rows = listed(run)
    assert [row["name"] for row in rows] == ["vgg11 lr=0.01 seed=0", "seeds", "vgg16-pooled lr=3e-4 seed=0"]
    first = rows[2]
    assert (first["run"], first["val"]) == (some_runs[first["name"]], 0.912345)
    experiment = mlflow_store[1].get_experiment_by_name("birds").experiment_id
    assert first["link"].endswith(
        f"/#/experiments/{experiment}/runs/{first['run']}?workflowType=machine_learning"
    )
    assert [row["experiment"] for row in listed(run, "--name", "birds")] == ["birds", "birds"]
    assert len(listed(run, "--all")) == 4
    assert len(listed(run, "-n", "1")) == 1
    assert "did you mean 'birds'" in run("--name", "birdz")[2]


def test_no_more_runs_are_fetched_than_are_listed(
    run: Run, some_runs: dict[str, str], mlflow_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "FEWEST", 1)
    search, pages = MlflowClient.search_runs, []

    def watched(self: MlflowClient, experiments: list[str], *args: Any, **named: Any) -> Any:
        found = search(self, experiments, *args, **named)
        pages.append((experiments, [each.info.run_name for each in found]))
        return found

    monkeypatch.setattr(MlflowClient, "search_runs", watched)
    birds, plants = (
        mlflow_store[1].get_experiment_by_name(name).experiment_id for name in ("birds", "plants")
    )
    assert len(listed(run, "--name", "plants")) == 1
    assert pages == [([plants], ["vgg11 lr=0.01 seed=0"])]
    pages.clear()
    assert [row["name"] for row in listed(run, "-n", "1")] == ["vgg11 lr=0.01 seed=0"]
    assert [names for _, names in pages] == [["vgg11 lr=0.01 seed=0", "seed 1 of seeds"]]
    pages.clear()
    assert len(listed(run, "--name", "birds", "-n", "2")) == 2
    assert [experiments for experiments, _ in pages] == [[birds]]


def test_deleting_a_run_deletes_its_parts(run: Run, some_runs: dict[str, str], mlflow_store: Store) -> None:
    client = mlflow_store[1]
    code, output, _ = run("delete", some_runs["seeds"][:8], "vgg11 lr=0.01 seed=0")
    assert code == 0
    assert "and 1 run that is part of it" in " ".join(output.split())
    assert [row["name"] for row in listed(run, "--all")] == ["vgg16-pooled lr=3e-4 seed=0"]
    client.restore_run(some_runs["seeds"])
    assert status(client, some_runs["seeds"]) == "FINISHED"


def test_a_running_run_is_not_deleted(run: Run, mlflow_store: Store, silent: Terminal) -> None:
    with track_run(*mlflow_store, RunRequest("birds", "busy"), silent):
        code, _, error = run("delete", "busy")
    assert (code, "is running" in error) == (2, True)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["lsit"], "did you mean 'list'"),
        (["delete"], "takes a run or more"),
        (["champion"], "takes one run"),
        (["list", "abc"], "takes no run"),
        (["champion", "vgg11 lr=0.01 seed=0"], "has no registered model"),
        (["delete", "nothing"], "There is no run 'nothing'"),
    ],
)
def test_what_is_refused(run: Run, some_runs: dict[str, str], words: list[str], reason: str) -> None:
    code, _, error = run(*words)
    assert code == 2
    assert reason in error


def test_an_empty_list(run: Run) -> None:
    assert "There are no runs yet" in run()[1]
    assert listed(run) == []
