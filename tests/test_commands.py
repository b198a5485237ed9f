"""The commands as a user gives them: whole runs, how they end, and what is refused in one sentence."""

from __future__ import annotations

import errno
import json
import os
import pickle
import re
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import safetensors
import torch
import torchvision
from commands import (
    RUNNER,
    accelerate,
    client_of,
    command,
    one_sentence,
    runs_of,
    started,
)
from safetensors.torch import save_file

from runner import train
from runner.cli import main
from runner.config import parser
from runner.config.schema import as_tree, flatten
from runner.utils.console import Terminal
from runner.utils.exit_status import guarded

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
    """Folder, words, client and run of one launch that went through."""
    folder = tmp_path_factory.mktemp("finished")
    words = place(folder)
    outcome = command(accelerate(words))
    assert outcome.returncode == 0, outcome.stderr
    client = client_of(folder)
    (run,) = runs_of(client)
    return folder, words, client, run


def test_a_finished_run_says_so(finished: tuple[Path, list[str], Any, Any]) -> None:
    folder, _, _, run = finished
    assert run.info.status == "FINISHED"
    assert re.fullmatch(r"\d\d-\d\d \d\d:\d\d:\d\d", run.info.run_name)
    assert list((folder / "mlruns" / "journals").iterdir()) == []


def test_a_run_holds_all_its_settings(finished: tuple[Path, list[str], Any, Any]) -> None:
    _, words, _, run = finished
    wanted = flatten(as_tree(parser.parse(words)[0]))
    assert run.data.params == {name: str(value) for name, value in wanted.items()}
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
        assert {"loss", "top1", "top5", "recall"} == {
            name.split("/")[2] for name in figures if name.startswith(f"test/{which}/")
        }
        assert figures[f"test/{which}/top5"] == 1, "there are three classes"
        assert 0 <= figures[f"test/{which}/top1"] <= 1
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert figures["val/best/top1"] == max(each.value for each in history)
    first_best = max(history, key=lambda each: (each.value, -each.step))
    assert figures["best_epoch"] == first_best.step


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
    told = json.loads(about)
    assert torch.__version__.startswith(told["packages"]["torch"])
    assert told["processes"] == 1
    assert "train.py" in told["command"]
    (used,) = run.inputs.dataset_inputs
    assert used.dataset.name == "pictures"
    assert used.dataset.source == str(images)
    assert len(used.dataset.digest) == 32
    assert run.data.tags["runner.manifest"].startswith(used.dataset.digest)
    profile = json.loads(used.dataset.profile)
    assert (profile["images"], profile["classes"]) == (36, 3)
    assert profile["train"] + profile["val"] + profile["test"] == 36


def test_evaluate_reproduces_a_run(finished: tuple[Path, list[str], Any, Any]) -> None:
    folder, _, _, run = finished
    words = ["evaluate", run.info.run_id[:8], "--json", "--tracking.root", str(folder / "mlruns")]
    outcome = command([sys.executable, "-m", "runner.cli.main", *words])
    assert outcome.returncode == 0, outcome.stderr
    report = json.loads(outcome.stdout)
    assert (report["run"], report["split"], report["processes"]) == (run.info.run_id, "test", 1)
    assert set(report["checkpoints"]) == {"best", "last"}
    for which, scores in report["checkpoints"].items():
        assert scores["images"] == report["images"] == 9
        assert scores["hits1"] == round(9 * run.data.metrics[f"test/{which}/top1"])
        assert scores["hits5"] == 9
        for figure in ("top1", "top5", "recall"):
            assert scores[figure] == run.data.metrics[f"test/{which}/{figure}"]
        assert scores["loss"] == pytest.approx(run.data.metrics[f"test/{which}/loss"], rel=1e-6)


# Runs that are stopped


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_keeps_what_it_learned(small: list[str], tmp_path: Path) -> None:
    process = started(
        [sys.executable, "-m", "runner.cli.main", "train", *small, *LONG], "epoch   3", tmp_path
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert one_sentence((tmp_path / "errors.txt").read_text()) == "stopped by SIGTERM"
    client = client_of(tmp_path)
    (run,) = runs_of(client)
    assert run.info.status == "KILLED"
    assert run.data.tags["runner.reason"] == "stopped by SIGTERM"
    from runner.models import checkpoint

    kept = Path(client.download_artifacts(run.info.run_id, "checkpoints", str(tmp_path)))
    best = checkpoint.load(kept / "best.safetensors")
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert best.epoch in [each.step for each in history if each.value == best.val["top1"]]
    assert best.val["top1"] == max(each.value for each in history)


@pytest.mark.slow
def test_a_run_whose_launcher_is_killed_does_not_go_on(small: list[str], tmp_path: Path) -> None:
    launcher = started(accelerate([*small, *LONG]), "epoch   2", tmp_path)
    (child,) = psutil.Process(launcher.pid).children()
    launcher.kill()
    launcher.wait(10)
    psutil.wait_procs([child], timeout=60)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "KILLED"


def test_the_next_start_closes_a_run_that_was_killed(small: list[str], tmp_path: Path) -> None:
    process = started([sys.executable, str(RUNNER / "train.py"), *small, *LONG], "epoch   3", tmp_path)
    process.kill()
    process.wait(10)
    client = client_of(tmp_path)
    (run,) = runs_of(client)
    assert run.info.status == "RUNNING", "it could not say anything"
    assert guarded(lambda: train.main([*small, "--train.epochs", "1"])) == 0
    old, new = runs_of(client)
    assert old.info.run_id == run.info.run_id
    assert old.info.status == "KILLED"
    assert old.data.tags["runner.reason"] == "its process died without a word"
    steps = [each.step for each in client.get_metric_history(old.info.run_id, "train/loss")]
    assert len(steps) >= 3
    assert steps == list(range(1, len(steps) + 1)), "every epoch that it told of, once"
    assert new.info.status == "FINISHED"


def test_repeats_are_children_of_one_run(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: train.main([*small, "--repeat", "2", "--seed.train", "5"])) == 0
    client = client_of(tmp_path)
    parent, *children = runs_of(client)
    assert [each.data.tags["mlflow.parentRunId"] for each in children] == [parent.info.run_id] * 2
    assert [each.data.params["seed.train"] for each in children] == ["5", "6"]
    assert {each.info.status for each in (parent, *children)} == {"FINISHED"}
    assert parent.data.params["repeat"] == "2"
    for which in ("best", "last"):
        for figure in ("top1", "top5", "recall", "loss"):
            first, second = (each.data.metrics[f"test/{which}/{figure}"] for each in children)
            name = f"test/{which}/{figure}"
            assert parent.data.metrics[name] == pytest.approx((first + second) / 2)
            assert parent.data.metrics[f"{name}_sd"] == pytest.approx(abs(first - second) / 2**0.5)
    assert "Mean ± sd of 2 fit seeds" in capfd.readouterr().out


def test_a_dry_run_trains_and_records_nothing(
    place: Callable[[Path], list[str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [*place(tmp_path), "--dry-run", "--tracking.root", str(tmp_path / "nowhere")]
    assert guarded(lambda: train.main([*words, "--cache", str(tmp_path / "cache")])) == 0
    told = capfd.readouterr().out
    assert "nothing was run" in told
    assert "images   18 train, 9 val, 9 test" in told
    assert "54 images and views to compute" in told, "two views of 18 images, one of 9 and 9"
    assert "epoch   1" not in told
    assert not (tmp_path / "nowhere").exists()
    assert [path for path in (tmp_path / "cache" / "features").rglob("*") if path.suffix == ".npy"] == []
    assert runs_of(client_of(tmp_path)) == []


# What is refused before anything is spawned


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train", "--fit.epoch", "3"], "did you mean 'train.epochs'"),
        (["train", "--epochs", "3"], "did you mean 'train.epochs'"),
        (["train", "--train.epochs", "three"], "train.epochs"),
        (["train", "--train.epochs", "0"], "train.epochs"),
        (["train", "--optim.lr", "-1"], "optim.lr"),
        (["train", "--model.arch", "vgg12"], "model.arch"),
        (["train", "stray"], "'stray'"),
        (["train", "--config", "caltech101-poled"], "did you mean 'caltech101-pooled'"),
        (["train", "--config"], "--config"),
        (["train", "--data.kind", "folder"], "data.root"),
        (["train", "--data.kind", "folder", "--data.root", "/no/such/place"], "/no/such/place"),
        (["train", "--model.weights", "/no/weights.pth"], "/no/weights.pth"),
        (["train", "--model.weights", "VGG11_Weights.IMAGENET1K_V1"], "VGG16_Weights"),
        (["train", "-n", "0"], "-n"),
        (["train", "-n", "two"], "'two'"),
        (["train", "-n"], "missing"),
        (["train", "--processes=-1"], "--processes"),
        (["evaluate"], "RUN"),
        (["evaluate", "latest", "--split", "tset"], "tset"),
        (["evaluate", "latest", "-n", "0"], "-n"),
        (["bench", "nothing"], "nothing"),
        (["bench"], "throughput"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_bad_words_are_refused(refused: Callable[..., str], words: list[str], said: str) -> None:
    assert said in refused(words)


def test_one_class_is_refused(refused: Callable[..., str], pictures: Path, words: list[str]) -> None:
    for label in ("green", "red"):
        for path in (pictures / label).iterdir():
            path.unlink()
        (pictures / label).rmdir()
    assert "one class only (blue)" in refused(["train", *words])


def test_an_empty_file_is_refused(refused: Callable[..., str], pictures: Path, words: list[str]) -> None:
    (pictures / "red" / "03.png").write_bytes(b"")
    assert f"{pictures / 'red' / '03.png'} is empty" in refused(["train", *words])


def test_a_folder_without_classes_is_refused(
    refused: Callable[..., str], tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "bare").mkdir()
    assert "class folders" in refused(["train", *words, "--data.root", str(tmp_path / "bare")])


def test_a_broken_experiment_file_is_refused(refused: Callable[..., str], tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("fit: [1, 2\n")
    assert f"{broken} is not a YAML file" in refused(["train", "--config", str(broken)])


def test_a_tracking_server_out_of_reach_is_refused(
    refused: Callable[..., str], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    began = time.monotonic()
    assert f"http://127.0.0.1:{port} does not answer" in refused(["train", *words])
    assert time.monotonic() - began < 10


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
    assert guarded(lambda: train.main(small)) == 2
    assert "The disk is full" in one_sentence(capfd.readouterr().err)
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "FAILED"
    assert "The disk is full" in run.data.tags["runner.reason"]
    assert list(tmp_path.rglob("*.partial")) == []
    assert list(tmp_path.rglob("*.safetensors")) == []


# What only the started process can refuse


class Malice:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def convolutions() -> dict[str, torch.Tensor]:
    """Tensors under the names of torchvision's vgg11, without a classifier."""
    features = torchvision.models.vgg11(weights=None, init_weights=False).features
    return {f"features.{name}": torch.zeros_like(value) for name, value in features.state_dict().items()}


def malicious(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".pth")
    path.write_bytes(pickle.dumps({**tensors, "classifier.0.weight": Malice(path.with_name("harmed"))}))
    return str(path)


def not_a_number(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    name = "features.0.bias"
    path = path.with_suffix(".safetensors")
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, path)
    return str(path)


def another_shape(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".safetensors")
    save_file({**tensors, "features.0.weight": torch.zeros(32, 3, 3, 3)}, path)
    return str(path)


def cut_short(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".safetensors")
    save_file(tensors, path)
    os.truncate(path, 100_000)
    return str(path)


def incomplete(path: Path, tensors: dict[str, torch.Tensor]) -> str:
    path = path.with_suffix(".pth")
    torch.save({name: value for name, value in tensors.items() if name != "features.3.weight"}, path)
    return str(path)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (malicious, "was not loaded"),
        (not_a_number, "features.0.bias holds NaN"),
        (another_shape, "features.0.weight has the shape [32, 3, 3, 3]"),
        (cut_short, "is not a whole .safetensors file"),
        (incomplete, "lacks features.3.weight"),
    ],
)
def test_bad_weights_are_refused(
    small: list[str],
    tmp_path: Path,
    convolutions: dict[str, torch.Tensor],
    capfd: pytest.CaptureFixture[str],
    make: Callable[[Path, dict[str, torch.Tensor]], str],
    said: str,
) -> None:
    weights = make(tmp_path / "weights", convolutions)
    assert guarded(lambda: train.main([*small, "--model.weights", weights])) == 2
    sentence = one_sentence(capfd.readouterr().err)
    assert said in sentence
    assert weights in sentence
    assert not (tmp_path / "harmed").exists()
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "FAILED"
    assert run.data.tags["runner.reason"] == sentence


def test_training_that_diverges_is_refused(
    small: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert guarded(lambda: train.main([*small, "--optim.lr", "1e30"])) == 2
    assert "lower optim.lr" in one_sentence(capfd.readouterr().err)
    (run,) = runs_of(client_of(tmp_path))
    assert run.info.status == "FAILED"


def test_a_failure_behind_the_launch_has_the_same_status(
    small: list[str], tmp_path: Path, convolutions: dict[str, torch.Tensor]
) -> None:
    weights = not_a_number(tmp_path / "weights", convolutions)
    words = ["train", *small, "--model.weights", weights]
    outcome = command([sys.executable, "-m", "runner.cli.main", *words])
    assert outcome.returncode == 2
    assert "features.0.bias holds NaN" in one_sentence(outcome.stderr)


# The pages


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that `runner ui` would become."""
    heard: list[list[str]] = []
    monkeypatch.setattr("runner.cli.ui.os.execv", lambda _path, words: heard.append(words))
    monkeypatch.setattr("runner.cli.ui.os.environ", dict(os.environ))
    return heard


def test_pages_without_records_are_refused(
    refused: Callable[..., str], tmp_path: Path, served: list[list[str]]
) -> None:
    sentence = refused(["ui", "--tracking.root", str(tmp_path / "none")])
    assert f"no records in {tmp_path / 'none'}" in sentence
    assert served == []
    assert not (tmp_path / "none").exists()


def test_pages_on_a_taken_port_are_refused(
    refused: Callable[..., str], small: list[str], tmp_path: Path, served: list[list[str]]
) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        sentence = refused(["ui", "--port", str(port), "--tracking.root", str(tmp_path / "mlruns")])
    assert f"Port {port} of 127.0.0.1 is taken" in sentence
    assert served == []


@pytest.mark.parametrize("words", [["--port", "99999"], ["--port", "http"], ["--prot", "5001"]], ids=" ".join)
def test_pages_with_bad_words_are_refused(
    refused: Callable[..., str], small: list[str], tmp_path: Path, served: list[list[str]], words: list[str]
) -> None:
    assert words[0] in refused(["ui", *words, "--tracking.root", str(tmp_path / "mlruns")])
    assert served == []


def test_pages_of_a_server_are_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, served: list[list[str]]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example")
    assert "https://tracking.example" in refused(["ui"])
    assert served == []


def test_pages_are_served_on_this_machine_alone(
    small: list[str], tmp_path: Path, served: list[list[str]]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    main.main(["ui", "--port", str(port), "--tracking.root", str(tmp_path / "mlruns")])
    (words,) = served
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == str(port)
    assert words[words.index("--backend-store-uri") + 1].endswith("mlruns/mlflow.db")


def test_an_unknown_run_is_refused(
    finished: tuple[Path, list[str], Any, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    from runner.cli import evaluate

    folder, _, _, run = finished
    words = ["no-such-run", "--tracking.root", str(folder / "mlruns")]
    assert guarded(lambda: evaluate.main(words)) == 2
    sentence = one_sentence(capfd.readouterr().err)
    assert "no-such-run" in sentence
    assert run.info.run_id[:8] in sentence


def test_a_terminal_that_is_not_asked_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    Terminal(speaks=False).line("hello")
    assert capfd.readouterr() == ("", "")
