"""`runner reproduce`: train a run again and compare all metrics; refuse what cannot be reproduced before training."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from commands import command, one_sentence, runner
from pictures import draw
from safetensors.torch import save_file
from stores import copy_store, open_store
from trained import TrainedRun

from runner import train
from runner.cli import main, reproduce
from runner.utils.exit_status import run_main

Refused = Callable[[list[str]], str]
POINTS = 3 * 7 + 2 * 4 + 4 + 1
"""Curves of three epochs, test metrics of two checkpoints, best validation metrics and their epoch."""

pytestmark = pytest.mark.usefixtures("plain_environment")


@dataclass(frozen=True)
class Original:
    """A finished run in a store of its own, whose records and images a test may change."""

    client: Any
    run_id: str
    images: Path
    words: list[str]
    """The command line that names it."""

    @property
    def experiment_id(self) -> str:
        return str(self.client.get_run(self.run_id).info.experiment_id)

    @property
    def moved_words(self) -> list[str]:
        """The command line with the images that a test may change."""
        return [*self.words, "--data.root", str(self.images)]


@pytest.fixture
def original(trained_run: TrainedRun, tmp_path: Path) -> Original:
    root = copy_store(trained_run.folder / "mlruns" / "mlflow.db", tmp_path / "mlruns")
    for name in ("artifacts", "frozen"):  # a copy of records looks for its files in its own folder
        if (trained_run.folder / "mlruns" / name).is_dir():
            shutil.copytree(trained_run.folder / "mlruns" / name, root / name)
    shutil.copytree(trained_run.pictures, tmp_path / "pictures")
    _, client = open_store(root)
    words = [trained_run.run_id, "--tracking.root", str(root)]
    return Original(client, trained_run.run_id, tmp_path / "pictures", words)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int | None]]:
    """The launches: words and processes. They train in this process, which is faster."""
    launches: list[tuple[list[str], int | None]] = []

    def launch(script: str, words: list[str], processes: int | None) -> int:
        assert script == "train.py"
        launches.append((words, processes))
        return run_main(lambda: train.main(words))

    monkeypatch.setattr(reproduce, "launch", launch)
    return launches


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(words)`: the sentence with which `runner reproduce` refuses them, without a launch."""
    monkeypatch.setattr(reproduce, "launch", lambda *_: pytest.fail("it was launched"))

    def run(words: list[str]) -> str:
        capfd.readouterr()
        assert main.main(["reproduce", *words]) == 2
        return one_sentence(capfd.readouterr().err)

    return run


# Training again


@pytest.mark.slow
def test_a_run_is_reproduced_to_the_last_bit(original: Original) -> None:
    """The whole command with a real launch; standard output has one JSON object and nothing else."""
    client = original.client
    run = client.get_run(original.run_id)
    outcome = command(runner("reproduce", *original.words, "--json"))
    assert outcome.returncode == 0, outcome.stderr
    assert "\n    3 " in outcome.stderr
    result = json.loads(outcome.stdout)
    assert outcome.stdout.count("\n") == 1
    assert result["run"] == original.run_id
    assert result["identical"] is result["same"] is True
    assert result["points"] == POINTS
    assert (result["largest_relative_difference"], result["differences"]) == (0, [])
    new = client.get_run(result["reproduction"])
    assert new.info.experiment_id == run.info.experiment_id
    assert new.info.run_name == f"reproduction of {run.info.run_name}"
    assert new.data.tags["runner.reproduces"] == original.run_id
    assert new.data.tags["runner.manifest"] == run.data.tags["runner.manifest"]
    assert new.data.params == run.data.params


def test_a_different_metric_is_named(
    original: Original, launched: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    original.client.log_metric(original.run_id, "val/loss", 9.5, step=2)
    original.client.log_metric(original.run_id, "images_per_second", 1, step=2)
    assert main.main(["reproduce", *original.moved_words, "-n", "1"]) == 1
    out = capfd.readouterr().out
    ((words, processes),) = launched
    assert processes == 1
    assert f"--data.root={original.images}" in words
    assert (
        f"different: 1 of {POINTS} values have another count, or differ by more than 1e-05 relative; first val/loss in"
        " epoch 2"
    ) in " ".join(out.split())
    assert "9.5" in out
    assert "images_per_second" not in out.partition("Differences")[2]
    assert "RUNNER_REPRODUCES" not in os.environ


@pytest.mark.slow
def test_other_weights_are_noted(
    original: Original, launched: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    features = torchvision.models.vgg11(weights=None).features.state_dict()
    save_file({f"features.{name}": value for name, value in features.items()}, tmp_path / "other.safetensors")
    words = ["--model.weights", str(tmp_path / "other.safetensors")]
    assert main.main(["reproduce", *original.words, *words]) == 1
    out = capfd.readouterr().out
    assert "different: " in out
    assert "the frozen weights differ" in out


def test_weights_that_are_known_to_be_others_are_refused(
    original: Original, refused: Refused, tmp_path: Path
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file({"features.0.weight": torch.zeros(1)}, weights)
    original.client.set_tag(original.run_id, "runner.weights", "0" * 64)
    sentence = refused([*original.words, "--model.weights", str(weights)])
    assert f"{weights} does not hold the weights that run {original.run_id[:8]}" in sentence


def test_a_training_that_fails_gives_its_exit_status(
    original: Original, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "launch", lambda *_: 143)
    assert main.main(["reproduce", *original.words, "--json"]) == 143
    assert capfd.readouterr().out == ""


def test_records_that_are_not_in_mlflow_yet_are_not_compared(
    original: Original, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "launch", lambda *_: 0)
    assert main.main(["reproduce", *original.words]) == 2
    assert "not all of its records have reached MLflow" in capfd.readouterr().err


def test_a_run_is_launched_with_as_many_processes_as_before(
    original: Original, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes_of_launches: list[int | None] = []

    def launch(_script: str, _words: list[str], processes: int | None) -> int:
        processes_of_launches.append(processes)
        return 7

    monkeypatch.setattr(reproduce, "launch", launch)
    monkeypatch.setattr("runner.training.original_run.OriginalRun.environment", lambda *_: {"processes": 3})
    for words in ([], ["-n", "2"]):
        assert main.main(["reproduce", *original.words, *words]) == 7
    assert processes_of_launches == [3, 2]


# Refusals before a launch


def test_changed_and_missing_images_are_refused(original: Original, refused: Refused) -> None:
    draw("red", 99).save(original.images / "red" / "03.png")
    assert f"{original.images / 'red' / '03.png'} has changed since the run" in refused(original.moved_words)
    (original.images / "blue" / "00.png").unlink()
    assert f"{original.images / 'blue' / '00.png'} is missing" in refused(original.moved_words)


def test_added_images_are_counted_and_refused(original: Original, refused: Refused) -> None:
    for number in (50, 51):
        draw("red", number).save(original.images / "red" / f"{number}.png")
    sentence = refused(original.moved_words)
    assert "2 added, 0 removed, " in sentence
    assert "moved to another split" in sentence


def test_another_manifest_is_refused(original: Original, refused: Refused) -> None:
    original.client.set_tag(original.run_id, "runner.manifest", "0" * 40)
    assert "manifest.csv" in refused(original.words)


def test_unknown_runs_and_stores_are_refused(original: Original, refused: Refused, tmp_path: Path) -> None:
    assert "no-such-run" in refused(["no-such-run", *original.words[1:]])
    assert str(tmp_path / "none") in refused(["latest", "--tracking.root", str(tmp_path / "none")])


def test_missing_weights_are_refused(original: Original, refused: Refused) -> None:
    assert "/no/weights.pth" in refused([*original.words, "--model.weights", "/no/weights.pth"])


@pytest.mark.parametrize("words", [["-n", "0"], ["--jason"], ["--data.rot", "x"], ["second"]], ids=" ".join)
def test_bad_command_lines_are_refused(original: Original, refused: Refused, words: list[str]) -> None:
    assert words[0] in refused([*original.words, *words])


def test_a_parent_is_refused_with_its_children(original: Original, refused: Refused) -> None:
    client, experiment = original.client, original.experiment_id
    parent = client.create_run(experiment, run_name="three seeds").info.run_id
    child = client.create_run(experiment, tags={"mlflow.parentRunId": parent}, run_name="seed 0").info.run_id
    client.set_terminated(parent)
    sentence = refused([parent, *original.words[1:]])
    assert "is the parent of 1 run and not a training" in sentence
    assert f"reproduce one of them: {child[:8]} (seed 0)" in sentence


def test_a_study_and_its_trials_are_refused(original: Original, refused: Refused) -> None:
    client, experiment = original.client, original.experiment_id
    study = client.create_run(experiment, tags={"runner.study": "wide"}).info.run_id
    assert "is the parent of 0 runs" in refused([study, *original.words[1:]])
    tags = {"runner.study": "wide", "runner.trial": "0", "mlflow.parentRunId": study}
    trial = client.create_run(experiment, tags=tags).info.run_id
    assert "trials cannot be reproduced" in refused([study, *original.words[1:]])
    assert "is a trial of a study" in refused([trial, *original.words[1:]])


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_an_unfinished_run_is_refused(original: Original, refused: Refused, status: str) -> None:
    original.client.update_run(original.run_id, status=status)
    expected = "is still running" if status == "RUNNING" else f"did not finish ({status})"
    assert expected in refused(original.words)


def test_a_run_without_metrics_or_files_is_refused(original: Original, refused: Refused) -> None:
    run = original.client.create_run(original.experiment_id).info.run_id
    original.client.set_terminated(run)
    assert "has no test metrics" in refused([run, *original.words[1:]])
    original.client.log_metric(run, "test/best/loss", 1)
    assert "has no environment.json" in refused([run, *original.words[1:]])
