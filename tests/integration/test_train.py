"""`runner train` as a user calls it: what a finished run holds, and how runs end."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from commands import (
    RUNNER,
    client_of,
    in_process,
    one_sentence,
    runs_of,
    started,
)
from pictures import draw

from runner import train
from runner.config import parser
from runner.config.effective import decisive_settings
from runner.training import repeated
from runner.utils import long_wait
from runner.utils.exit_status import run_main

LONG = ("--train.epochs", "100000", "--schedule.kind", "constant")
"""Settings of a run that has to be stopped."""
CURVES = (
    *("train/loss", "train/top1", "val/loss", "val/top1", "val/top5", "val/balanced_accuracy"),
    *("lr", "images_per_second", "epoch_seconds"),
)


# A finished run


@pytest.fixture(scope="module")
def finished(
    place: Callable[[Path], list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], Any, Any]:
    """Folder, words, client and run of one training that went through, in this process."""
    folder = tmp_path_factory.mktemp("finished")
    words = place(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(RUNNER / "train.py"), *words])
        outcome = in_process("train", *words)
    assert outcome.returncode == 0, outcome.stderr
    client = client_of(folder)
    (run,) = runs_of(client)
    return folder, words, client, run


def test_a_finished_run_says_so(finished: tuple[Path, list[str], Any, Any]) -> None:
    folder, _, _, run = finished
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "vgg11-pooled lr=0.003 seed=0"
    assert "3 classes, 36 images (18 train, 9 val, 9 test)" in run.data.tags["mlflow.note.content"]
    assert list((folder / "mlruns" / "journals").iterdir()) == []


def test_a_run_holds_the_settings_that_decided_it(finished: tuple[Path, list[str], Any, Any]) -> None:
    _, words, _, run = finished
    wanted = decisive_settings(parser.parse(words)[0])
    assert run.data.params == {name: str(value) for name, value in wanted.items()}
    assert not [name for name in run.data.params if name.startswith(("tracking.", "checkpoints.", "cache"))]
    assert run.data.params["train.epochs"] == "3"
    assert run.data.params["model.arch"] == "vgg11"


@pytest.mark.parametrize("curve", CURVES)
def test_a_run_holds_a_point_of_each_curve_for_each_epoch(
    finished: tuple[Path, list[str], Any, Any], curve: str
) -> None:
    _, _, client, run = finished
    assert [each.step for each in client.get_metric_history(run.info.run_id, curve)] == [1, 2, 3]


def test_a_run_holds_its_test_scores(finished: tuple[Path, list[str], Any, Any]) -> None:
    _, _, client, run = finished
    figures = run.data.metrics
    for which in ("best", "last"):
        assert {"loss", "top1", "top5", "balanced_accuracy"} == {
            name.split("/")[2] for name in figures if name.startswith(f"test/{which}/")
        }
        assert figures[f"test/{which}/top5"] == 1, "there are three classes"
        assert 0 <= figures[f"test/{which}/top1"] <= 1
    top1, loss = (client.get_metric_history(run.info.run_id, f"val/{name}") for name in ("top1", "loss"))
    best = max(zip(top1, loss, strict=True), key=lambda epoch: (epoch[0].value, -epoch[1].value))
    assert [figures[name] for name in ("val/best/top1", "val/best/loss")] == [each.value for each in best]
    assert figures["best_epoch"] == best[0].step


def test_a_run_holds_its_files(finished: tuple[Path, list[str], Any, Any]) -> None:
    _, _, client, run = finished

    def names(folder: str | None = None) -> set[str]:
        return {each.path for each in client.list_artifacts(run.info.run_id, folder)}

    tables = {"manifest.csv", "predictions.csv"}
    assert names() == {"experiment.yaml", "environment.json", "figures", "checkpoints", *tables}
    assert names("figures") == {"figures/loss.png", "figures/accuracy.png"}
    assert names("checkpoints") == {f"checkpoints/{name}.safetensors" for name in ("best", "last", "frozen")}


def test_a_runs_experiment_parses_back(finished: tuple[Path, list[str], Any, Any], tmp_path: Path) -> None:
    _, words, client, run = finished
    path = client.download_artifacts(run.info.run_id, "experiment.yaml", str(tmp_path))
    assert parser.read(Path(path)) == parser.parse(words)[0]


def test_a_runs_files_tell_of_its_images_and_its_environment(
    finished: tuple[Path, list[str], Any, Any], tmp_path: Path, images: Path
) -> None:
    _, _, client, run = finished
    table = Path(client.download_artifacts(run.info.run_id, "manifest.csv", str(tmp_path))).read_text()
    assert len(table.splitlines()) == 1 + 36
    about = Path(client.download_artifacts(run.info.run_id, "environment.json", str(tmp_path))).read_text()
    about_run = json.loads(about)
    assert torch.__version__.startswith(about_run["packages"]["torch"])
    assert about_run["processes"] == 1
    assert "train.py" in about_run["command"]
    inputs = {each.tags[0].value: each.dataset for each in run.inputs.dataset_inputs}
    assert sorted(inputs) == ["test", "train", "val"]
    assert {used.name for used in inputs.values()} == {f"pictures {split}" for split in inputs}
    assert {used.source for used in inputs.values()} == {str(images)}
    assert len({used.digest for used in inputs.values()}) == 3
    profiles = {split: json.loads(used.profile) for split, used in inputs.items()}
    assert {profile["classes"] for profile in profiles.values()} == {3}
    assert {split: profile["images"] for split, profile in profiles.items()} == {
        "train": 18,
        "val": 9,
        "test": 9,
    }


@pytest.mark.slow
def test_evaluate_reproduces_a_run(finished: tuple[Path, list[str], Any, Any]) -> None:
    folder, _, _, run = finished
    words = ["evaluate", run.info.run_id[:8], "--json", "--tracking.root", str(folder / "mlruns")]
    outcome = in_process(*words)
    assert outcome.returncode == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["run"], report["split"], report["processes"]) == (run.info.run_id, "test", 1)
    assert set(report["checkpoints"]) == {"best", "last"}
    for which, scores in report["checkpoints"].items():
        assert scores["images"] == report["images"] == 9
        assert scores["hits1"] == round(9 * run.data.metrics[f"test/{which}/top1"])
        assert scores["hits5"] == 9
        for figure in ("top1", "top5", "balanced_accuracy"):
            assert scores[figure] == run.data.metrics[f"test/{which}/{figure}"]
        assert scores["loss"] == pytest.approx(run.data.metrics[f"test/{which}/loss"], rel=1e-6)


# Runs that are stopped


@pytest.mark.slow
def test_the_next_start_closes_a_run_that_was_killed(small: list[str], tmp_path: Path) -> None:
    process = started([sys.executable, str(RUNNER / "train.py"), *small, *LONG], "\n    3 ", tmp_path)
    process.kill()
    process.wait(10)
    client = client_of(tmp_path)
    (run,) = runs_of(client)
    assert run.info.status == "RUNNING", "it could not say anything"
    assert run_main(lambda: train.main([*small, "--train.epochs", "1"])) == 0
    old, new = runs_of(client)
    assert old.info.run_id == run.info.run_id
    assert old.info.status == "KILLED"
    assert old.data.tags["runner.reason"] == "the process exited unexpectedly"
    steps = [each.step for each in client.get_metric_history(old.info.run_id, "train/loss")]
    assert len(steps) >= 3
    assert steps == list(range(1, len(steps) + 1)), "every printed epoch, once"
    assert new.info.status == "FINISHED"


def test_repeats_are_children_of_one_run(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(lambda: train.main([*small, "--repeat", "2", "--seed.train", "5"])) == 0
    client = client_of(tmp_path)
    parent, *children = runs_of(client)
    assert [each.data.tags["mlflow.parentRunId"] for each in children] == [parent.info.run_id] * 2
    assert [each.data.params["seed.train"] for each in children] == ["5", "6"]
    assert {each.info.status for each in (parent, *children)} == {"FINISHED"}
    assert parent.data.params["repeat"] == "2"
    for which in ("best", "last"):
        for figure in ("top1", "top5", "balanced_accuracy", "loss"):
            first, second = (each.data.metrics[f"test/{which}/{figure}"] for each in children)
            name = f"test/{which}/{figure}"
            assert parent.data.metrics[name] == pytest.approx((first + second) / 2)
            assert parent.data.metrics[f"{name}_sd"] == pytest.approx(abs(first - second) / 2**0.5)
    assert "Mean ± sd of 2 training seeds" in capfd.readouterr().out


@pytest.mark.slow
def test_repeats_over_splits_say_so(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repeat = ("--repeat", "2", "--repeat-over", "split", "--train.epochs", "1")
    assert run_main(lambda: train.main([*small, *repeat])) == 0
    parent, *children = runs_of(client_of(tmp_path))
    assert [each.data.params["seed.split"] for each in children] == ["0", "1"]
    assert len({each.data.params["seed.train"] for each in children}) == 1
    assert len({each.data.tags["runner.manifest"] for each in children}) == 2
    assert parent.data.tags["runner.manifest"] == children[0].data.tags["runner.manifest"]
    assert parent.data.params["repeat_over"] == "split"
    said = "Mean ± sd of 2 splits with one training seed"
    assert parent.data.tags["mlflow.note.content"] == said
    assert said in capfd.readouterr().out


def test_the_scan_before_repeated_runs_may_take_hours_and_its_errors_are_sentences(
    small: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = []

    def scan(*_: object) -> None:
        limits.append(long_wait._timeout)
        raise MemoryError

    monkeypatch.setattr("runner.training.setup.scan_dataset", scan)
    assert run_main(lambda: train.main([*small, "--repeat", "2"])) == 2
    assert "not enough memory" in one_sentence(capfd.readouterr().err)
    assert limits == [long_wait.LONG]


def test_runs_of_a_repeated_run_have_the_same_images(
    small: list[str], images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """One changes after the first of them, and the launch is stopped there."""
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    words = [*small, "--data.root", str(moved), "--repeat", "2", "--train.epochs", "1"]
    train_one, changed = repeated._RepeatedTraining.train_one, next(moved.rglob("*.png"))
    original = changed.read_bytes()

    def change_after(self: Any, *args: Any) -> Any:
        train_one(self, *args)
        draw("red", 99).save(changed)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated._RepeatedTraining, "train_one", change_after)
        assert run_main(lambda: train.main(words)) == 130
    assert run_main(lambda: train.main([*words, "--resume", "auto"])) == 2
    assert "or their split, are not those of run" in capfd.readouterr().err
    changed.write_bytes(original)
    assert run_main(lambda: train.main([*words, "--resume", "auto"])) == 0
    assert "is finished: run" in capfd.readouterr().out


def test_a_dry_run_trains_and_records_nothing(
    place: Callable[[Path], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*place(tmp_path), "--dry-run", "--tracking.root", str(tmp_path / "nowhere")]
    assert run_main(lambda: train.main([*words, "--cache", str(tmp_path / "cache")])) == 0
    printed = capfd.readouterr().out
    assert "nothing was run" in printed
    assert re.search(r"images +18 train, 9 val, 9 test", printed)
    assert "54 images and views to compute" in printed, "two views of 18 images, one of 9 and 9"
    assert "\n    1 " not in printed
    assert not (tmp_path / "nowhere").exists()
    assert [path for path in (tmp_path / "cache" / "features").rglob("*") if path.suffix == ".npy"] == []
    assert runs_of(client_of(tmp_path)) == []


@pytest.mark.parametrize("normalize", ["weights", "statistics"])
def test_a_dry_run_downloads_no_weights(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    normalize: str,
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", None)  # a call would fail
    words = ["--model.weights", "VGG11_Weights.IMAGENET1K_V1", "--model.normalize", normalize, "--dry-run"]
    assert run_main(lambda: train.main([*small, "--model.arch", "vgg11", *words])) == 0
    printed = capfd.readouterr().out
    assert printed.count("a run would download VGG11_Weights.IMAGENET1K_V1 (507 MB) into") == 1
    assert re.search(r"weights +VGG11_Weights.IMAGENET1K_V1 ", printed)
    assert re.search(r"time +about ", printed)
    assert run_main(lambda: train.main([*small, "--model.weights", "VGG11_Weights.X", "--dry-run"])) == 2
    assert "VGG11_Weights has " in capfd.readouterr().err


def test_a_full_disk_is_said_in_one_sentence(
    refused: Callable[..., str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("runner.utils.atomic_files.os.fsync", full)
    assert "The disk is full" in refused(["train", *words])
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert left == [], "neither a partial file nor one that looks whole"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        safetensors.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_disk_that_fills_up_in_mid_run(
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    error: Exception,
) -> None:
    """The library that writes checkpoints has an error of its own for it."""

    def full(_tensors: object, path: Path, _metadata: object) -> None:
        Path(path).write_bytes(b"half a checkpoint")
        raise error

    monkeypatch.setattr("runner.utils.tensors.save_file", full)
    assert run_main(lambda: train.main(small)) == 2
    assert "The disk is full" in one_sentence(capfd.readouterr().err)
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "FAILED"
    assert "The disk is full" in run.data.tags["runner.reason"]
    assert list(tmp_path.rglob("*.partial")) == []
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_training_that_diverges_is_refused(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_main(lambda: train.main([*small, "--optim.lr", "1e30"])) == 2
    assert "lower optim.lr" in one_sentence(capfd.readouterr().err)
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "FAILED"
