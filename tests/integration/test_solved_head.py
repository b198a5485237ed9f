"""A solved head by the command line: on several processes, and through the other verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import client_of, command, in_process, runner, runs_of
from searches import runs_of_study, trials_of

from runner import search

SOLVED = (
    *("--model.head", "linear", "--model.pool", "[1, 2]", "--model.power", "0.5", "--model.norm", "l2"),
    *("--augment.views", "none", "--train.solver", "ridge", "--train.penalty", "1", "--train.refit", "true"),
)


def scores(folder: Path) -> dict[str, float]:
    (run,) = runs_of(client_of(folder))
    return {
        name: value
        for name, value in run.data.metrics.items()
        if name.startswith(("val/", "test/", "penalty"))
    }


@pytest.mark.slow
def test_two_processes_solve_what_one_does(small: list[str], tmp_path: Path) -> None:
    assert in_process("train", *small, *SOLVED).returncode == 0
    other = tmp_path / "on two"
    words = [*small, *SOLVED, "--cache", str(other / "cache"), "--tracking.root", str(other / "mlruns")]
    outcome = command(runner("train", "-n", "2", *words))
    assert outcome.returncode == 0, outcome.stderr
    one, two = scores(tmp_path), scores(other)
    assert one.keys() == two.keys()
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_the_other_verbs_take_a_solved_head(small: list[str], images: Path, tmp_path: Path) -> None:
    variants = ("--augment.scales", "[32, 48]", "--augment.tta", "flips")
    assert in_process("train", *small, *SOLVED, *variants, "--tracking.model", "true").returncode == 0
    tracking = ["--tracking.root", str(tmp_path / "mlruns")]
    picture = next((images / "red").iterdir())
    predicted = in_process("predict", str(picture), "--json", *tracking)
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout)[0]["top"][0]["class"] == "red"
    onnx = tmp_path / "model.onnx"
    for words in (
        ["export", "--onnx", str(onnx)],
        ["explain", str(picture), "--out", str(tmp_path / "maps"), "--layer", "features.7"],
        ["evaluate", "latest"],
        ["reproduce", "latest"],
    ):
        outcome = in_process(*words, *tracking)
        assert outcome.returncode == 0, (words, outcome.stderr)
    assert onnx.exists()


@pytest.mark.slow
@pytest.mark.usefixtures("plain_environment")
def test_a_study_of_solved_heads(small: list[str], tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(
        "model.pool: [[1], [1, 2], 2]\ntrain.penalty: [0.1, 1.0, 10.0]\nmodel.power: [0.5, 1.0]\n"
    )
    words = [
        "--study",
        "some",
        "--space",
        str(space),
        "--trials",
        "5",
        "--sampler",
        "random",
        "--confirm",
        "2",
    ]
    assert search.main([*small, *SOLVED, "--model.power", "1", "--train.penalty", "10", *words]) == 0
    trials = trials_of(tmp_path)
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert len({trial.params["model.pool"] for trial in trials}) > 1
    parent, runs = runs_of_study(tmp_path)
    assert parent.info.status == "FINISHED"
    for run in runs:
        is_trial = "runner.trial" in run.data.tags
        assert run.data.params["train.refit"] == "False"
        assert is_trial or run.info.run_name.endswith(("division 1", "division 2"))
        assert any(name.startswith("test/") for name in run.data.metrics) != is_trial
