"""A solved head by the command line: on several processes, and through the other verbs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import client_of, command, runner, runs_of

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
    assert command(runner("train", *small, *SOLVED)).returncode == 0
    other = tmp_path / "on two"
    words = [*small, *SOLVED, "--cache", str(other / "cache"), "--tracking.root", str(other / "mlruns")]
    outcome = command(runner("train", "-n", "2", *words))
    assert outcome.returncode == 0, outcome.stderr
    one, two = scores(tmp_path), scores(other)
    assert one.keys() == two.keys()
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_the_other_verbs_take_a_solved_head(small: list[str], images: Path, tmp_path: Path) -> None:
    assert command(runner("train", *small, *SOLVED, "--tracking.model", "true")).returncode == 0
    tracking = ["--tracking.root", str(tmp_path / "mlruns")]
    picture = next((images / "red").iterdir())
    predicted = command(runner("predict", str(picture), "--json", *tracking))
    assert predicted.returncode == 0, predicted.stderr
    assert json.loads(predicted.stdout)[0]["top"][0]["class"] == "red"
    onnx = tmp_path / "model.onnx"
    for words in (
        ["export", "--onnx", str(onnx)],
        ["explain", str(picture), "--out", str(tmp_path / "maps"), "--layer", "features.7"],
        ["evaluate", "latest"],
        ["reproduce", "latest"],
    ):
        outcome = command(runner(*words, *tracking))
        assert outcome.returncode == 0, (words, outcome.stderr)
    assert onnx.exists()
