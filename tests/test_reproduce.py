"""`runner reproduce`: a run trained again, its figures compared; what cannot be reproduced is refused first."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torchvision
from conftest import COLOURS, draw
from safetensors.torch import save_file

from runner import train
from runner.cli import main, reproduce
from runner.cli.reproduce import difference
from runner.data.manifest import Entry, Manifest
from runner.evaluation.reproduction import Change, Difference, changes, compare
from runner.tracking.mlflow_server import server
from runner.utils.errors import guarded

Refused = Callable[..., str]


@dataclass(frozen=True)
class Place:
    """A finished run, with a client of its store."""

    folder: Path
    client: Any
    run: Any

    @property
    def images(self) -> Path:
        return self.folder / "pictures"

    @property
    def words(self) -> list[str]:
        return [self.run.info.run_id, "--tracking.root", str(self.folder / "mlruns")]


@pytest.fixture(scope="module", autouse=True)
def plain_environment() -> Any:
    """The processor, and no store but the one that a test names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        yield


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A run of two epochs on three classes of twelve pictures; nothing may change it."""
    folder = tmp_path_factory.mktemp("reproduce")
    for label in COLOURS:
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            draw(label, number).save(folder / "pictures" / label / f"{number:02}.png")
    words = [
        *("--name", "small", "--data.kind", "folder", "--data.root", str(folder / "pictures")),
        *("--cache", str(folder / "cache"), "--tracking.root", str(folder / "mlruns")),
        *("--tracking.system_metrics", "false", "--tracking.model", "false", "--tracking.gallery", "0"),
        *("--model.arch", "vgg11", "--model.pool", "1", "--model.width", "16"),
        *("--augment.resize", "36", "--augment.crop", "32", "--augment.views", "clean"),
        *("--train.epochs", "2", "--train.batch_size", "8", "--train.precision", "no"),
        *("--features.batch_size", "8", "--features.compile", "false"),
    ]
    assert guarded(lambda: train.main(words)) == 0
    client = server(str(folder / "mlruns")).connect()
    experiment = client.get_experiment_by_name("small")
    (run,) = client.search_runs([experiment.experiment_id])
    return Place(folder, client, run)


@pytest.fixture
def place(original: Place, tmp_path: Path) -> Place:
    """The original in a store of its own, whose records a test may change; pictures and files are shared."""
    (tmp_path / "mlruns").mkdir()
    with (
        sqlite3.connect(original.folder / "mlruns" / "mlflow.db") as source,
        sqlite3.connect(tmp_path / "mlruns" / "mlflow.db") as target,
    ):
        source.backup(target)
    shutil.copytree(original.images, tmp_path / "pictures")
    client = server(str(tmp_path / "mlruns")).connect()
    return Place(tmp_path, client, client.get_run(original.run.info.run_id))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], int | None]]:
    """What is launched: words and processes. It is trained in this process, which is sooner ready."""
    heard: list[tuple[list[str], int | None]] = []

    def launch(script: str, words: list[str], processes: int | None) -> int:
        assert script == "train.py"
        heard.append((words, processes))
        return guarded(lambda: train.main(words))

    monkeypatch.setattr(reproduce, "launch", launch)
    return heard


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """`refused(words)`: the sentence with which they are refused; nothing may be launched."""
    monkeypatch.setattr(reproduce, "launch", lambda *_: pytest.fail("it was launched"))

    def run(words: list[str]) -> str:
        capfd.readouterr()
        assert main.main(["reproduce", *words]) == 2
        errors = capfd.readouterr().err
        assert errors.startswith("runner: ")
        assert errors.count("\n") == 1
        return errors

    return run


# Trained again


@pytest.mark.slow
def test_a_run_is_reproduced_to_the_last_bit(original: Place) -> None:
    """The whole command, through a real launch: on standard output there is one JSON object and nothing else."""
    words = [sys.executable, "-m", "runner.cli.main", "reproduce", *original.words, "--json"]
    outcome = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=os.environ)
    assert outcome.returncode == 0, outcome.stderr
    assert "epoch   2" in outcome.stderr
    report = json.loads(outcome.stdout)
    assert outcome.stdout.count("\n") == 1
    assert report["run"] == original.run.info.run_id
    assert report["identical"] is report["same"] is True
    assert report["figures"] == 2 * 7 + 2 * 4 + 4 + 1, (
        "curves of two epochs, test, best of validation, its epoch"
    )
    assert (report["largest_relative_difference"], report["differences"]) == (0, [])
    new = original.client.get_run(report["reproduction"])
    assert new.info.experiment_id == original.run.info.experiment_id
    assert new.info.run_name == f"reproduction of {original.run.info.run_name}"
    assert new.data.tags["runner.reproduces"] == original.run.info.run_id
    assert new.data.tags["runner.manifest"] == original.run.data.tags["runner.manifest"]
    assert {
        name for name in original.run.data.params if new.data.params[name] != original.run.data.params[name]
    } == set()


def test_a_figure_that_differs_is_named(
    place: Place, launched: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    run_id = place.run.info.run_id
    place.client.log_metric(run_id, "val/loss", 9.5, step=2)
    place.client.log_metric(run_id, "images_per_second", 1, step=2)
    status = main.main(["reproduce", *place.words, "--data.root", str(place.images), "-n", "1"])
    told = capfd.readouterr().out
    assert status == 1
    ((words, processes),) = launched
    assert processes == 1
    assert f"--data.root={place.images}" in words
    assert (
        "differs: 1 of 27 figures are another count, or beyond 1e-05 relative; first val/loss in epoch 2"
        in told
    )
    assert "9.5" in told
    assert "images_per_second" not in told.partition("What differs")[2]
    assert "RUNNER_REPRODUCES" not in os.environ


def test_other_weights_are_told_of(
    place: Place, launched: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    features = torchvision.models.vgg11(weights=None).features.state_dict()
    save_file({f"features.{name}": value for name, value in features.items()}, tmp_path / "other.safetensors")
    words = ["--model.weights", str(tmp_path / "other.safetensors")]
    assert main.main(["reproduce", *place.words, *words]) == 1
    told = capfd.readouterr().out
    assert "differs: " in told
    assert "the frozen weights are not the run's" in told


def test_a_training_that_fails_has_its_own_status(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "launch", lambda *_: 143)
    assert main.main(["reproduce", *place.words, "--json"]) == 143
    assert capfd.readouterr().out == ""


def test_records_that_are_late_are_not_compared(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reproduce, "launch", lambda *_: 0)
    assert main.main(["reproduce", *place.words]) == 2
    assert "have not all reached MLflow" in capfd.readouterr().err


def test_a_run_is_launched_on_as_many_processes_as_it_had(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[int | None] = []
    monkeypatch.setattr(reproduce, "launch", lambda _script, _words, processes: heard.append(processes) or 7)
    monkeypatch.setattr(reproduce, "_environment", lambda *_: {"processes": 3})
    for words in ([], ["-n", "2"]):
        assert main.main(["reproduce", *place.words, *words]) == 7
    assert heard == [3, 2]


# Refused before anything is launched


def test_a_changed_image_is_refused(place: Place, refused: Refused) -> None:
    draw("red", 99).save(place.images / "red" / "03.png")
    sentence = refused([*place.words, "--data.root", str(place.images)])
    assert f"{place.images / 'red' / '03.png'} has changed since the run" in sentence


def test_a_missing_image_is_refused(place: Place, refused: Refused) -> None:
    (place.images / "blue" / "00.png").unlink()
    sentence = refused([*place.words, "--data.root", str(place.images)])
    assert f"{place.images / 'blue' / '00.png'} is gone" in sentence


def test_added_images_are_refused_with_their_number(place: Place, refused: Refused) -> None:
    for number in (50, 51):
        draw("red", number).save(place.images / "red" / f"{number}.png")
    sentence = refused([*place.words, "--data.root", str(place.images)])
    assert "2 added, 0 left out, " in sentence
    assert "moved to another split" in sentence


def test_another_manifest_than_the_runs_is_refused(place: Place, refused: Refused) -> None:
    place.client.set_tag(place.run.info.run_id, "runner.manifest", "0" * 40)
    assert "manifest.csv" in refused(place.words)


def test_an_unknown_run_is_refused(place: Place, refused: Refused) -> None:
    assert "no-such-run" in refused(["no-such-run", *place.words[1:]])


def test_a_store_without_records_is_refused(tmp_path: Path, refused: Refused) -> None:
    assert "no records" in refused(["latest", "--tracking.root", str(tmp_path / "none")])


def test_missing_weights_are_refused(place: Place, refused: Refused) -> None:
    assert "/no/weights.pth" in refused([*place.words, "--model.weights", "/no/weights.pth"])


@pytest.mark.parametrize("words", [["-n", "0"], ["--jason"], ["--data.rot", "x"], ["second"]], ids=" ".join)
def test_bad_words_are_refused(place: Place, refused: Refused, words: list[str]) -> None:
    assert words[0] in refused([*place.words, *words])


def test_a_parent_is_refused_with_its_children(place: Place, refused: Refused) -> None:
    experiment = place.run.info.experiment_id
    parent = place.client.create_run(experiment, run_name="three seeds").info.run_id
    child = place.client.create_run(
        experiment, tags={"mlflow.parentRunId": parent}, run_name="seed 0"
    ).info.run_id
    place.client.set_terminated(parent)
    sentence = refused([parent, *place.words[1:]])
    assert "is the parent of 1 run and was not trained itself" in sentence
    assert f"reproduce one of them: {child[:8]} (seed 0)" in sentence


def test_a_study_and_its_trials_are_refused(place: Place, refused: Refused) -> None:
    experiment = place.run.info.experiment_id
    study = place.client.create_run(experiment, tags={"runner.study": "wide"}).info.run_id
    assert "is the parent of 0 runs" in refused([study, *place.words[1:]])
    tags = {"runner.study": "wide", "runner.trial": "0", "mlflow.parentRunId": study}
    trial = place.client.create_run(experiment, tags=tags).info.run_id
    assert "its trials cannot be reproduced" in refused([study, *place.words[1:]])
    assert "is a trial of a study" in refused([trial, *place.words[1:]])


@pytest.mark.parametrize("status", ["KILLED", "FAILED", "RUNNING"])
def test_a_run_that_did_not_finish_is_refused(place: Place, refused: Refused, status: str) -> None:
    place.client.update_run(place.run.info.run_id, status=status)
    said = "is still running" if status == "RUNNING" else f"did not finish (it is {status})"
    assert said in refused(place.words)


def test_a_run_without_files_or_scores_is_refused(place: Place, refused: Refused) -> None:
    run = place.client.create_run(place.run.info.experiment_id).info.run_id
    place.client.set_terminated(run)
    assert "has no test scores" in refused([run, *place.words[1:]])
    place.client.log_metric(run, "test/best/loss", 1)
    assert "has no environment.json" in refused([run, *place.words[1:]])


# Judged


POINTS = {("train/loss", 1): 2.0, ("val/top1", 1): 0.5, ("train/loss", 2): 1.0, ("test/best/top1", 0): 0.75}


def test_the_same_points_are_identical() -> None:
    found = compare(POINTS, dict(POINTS))
    assert (found.identical, found.same, found.largest) == (True, True, 0)
    assert found.sentence() == "identical: all 4 figures are the same to the last bit"


def test_last_bits_of_losses_are_tolerated_and_told() -> None:
    found = compare(POINTS, {**POINTS, ("train/loss", 2): 1.0 + 1e-7, ("train/loss", 1): 2.0 + 1e-7})
    assert (found.identical, found.same) == (False, True)
    assert found.largest == pytest.approx(1e-7, rel=1e-3)
    assert found.sentence() == (
        "the same to 1.0e-07 relative: 2 of 4 figures differ in their last bits, first train/loss in epoch 1;"
        " all counts are equal"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [(("val/top1", 1), 0.5 + 1e-9), (("train/loss", 2), 1.001), (("test/best/top1", 0), 0.0)],
    ids=["a count, however near", "a loss that is far", "a test score"],
)
def test_other_figures_differ(key: tuple[str, int], value: float) -> None:
    found = compare(POINTS, {**POINTS, key: value})
    assert (found.identical, found.same) == (False, False)
    assert found.beyond == [Difference(*key, POINTS[key], value)]
    assert key[0] in found.sentence()


def test_a_point_that_is_missing_differs() -> None:
    short = {key: value for key, value in POINTS.items() if key != ("train/loss", 2)}
    for pair in ((POINTS, short), (short, POINTS)):
        found = compare(*pair)
        assert not found.same
        assert found.figures == 4
        assert found.largest == 0
        assert found.differences[0].relative is None


def test_differences_come_in_the_order_in_which_they_arose() -> None:
    found = compare(POINTS, {key: value + 1 for key, value in POINTS.items()})
    assert [each.place for each in found.differences] == [
        "train/loss in epoch 1",
        "val/top1 in epoch 1",
        "train/loss in epoch 2",
        "test/best/top1",
    ]


def test_manifests_differ_by_numbers_of_images() -> None:
    def manifest(**splits: str) -> Manifest:
        return Manifest(Path("/"), tuple(Entry(path, "a", split, 1, "") for path, split in splits.items()))

    then, now = manifest(a="train", b="val", c="test"), manifest(a="val", c="test", d="train", e="train")
    assert difference(then, now) == "2 added, 1 left out, 1 moved to another split"


def test_environments_differ_in_what_may_matter() -> None:
    then = {"python": "3.11", "host": "a", "packages": {"torch": "2.0", "numpy": "2"}, "processes": 2}
    now = {
        "python": "3.11",
        "host": "b",
        "packages": {"torch": "2.1", "numpy": "2", "new": "1"},
        "processes": 1,
    }
    assert changes(then, now) == [Change("torch", "2.0", "2.1"), Change("processes", "2", "1")]


def test_code_that_was_not_committed_is_told_of() -> None:
    clean = {"git_commit": "a" * 40, "git_dirty": False}
    dirty = {**clean, "git_dirty": True}
    assert changes(clean, clean) == []
    words = "a" * 12 + " with uncommitted changes"
    assert changes(clean, dirty) == [Change("code", "a" * 12, words)]
    assert changes(dirty, dirty) == [Change("code", words, words)]
    assert changes({"git_commit": None, "git_dirty": None}, dirty) == []
