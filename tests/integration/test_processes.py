"""One process or several: the same losses, the same counts, and a sentence where there are fewer than asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import in_process
from conftest import COLORS, draw
from mlflow import MlflowClient
from mlflow.entities import Run
from two_processes import finish_two, start_two

from runner import train
from runner.utils.exit_status import run_main

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN = str(REPOSITORY / "runner" / "train.py")


def start(*words: str) -> subprocess.Popen[str]:
    """A Python process on the CPU that is no child of a launcher of its own."""
    own = ("RUNNER_", "MLFLOW_TRACKING", "OMP_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=REPOSITORY,
        env={**inherited, "ACCELERATE_USE_CPU": "true", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def accelerate(*words: str) -> subprocess.Popen[str]:
    """`accelerate launch` with every choice spelled out."""
    plain = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    return start("-m", "accelerate.commands.launch", *plain, *words)


def finish(process: subprocess.Popen[str]) -> str:
    """What it wrote to standard output; fails where it did."""
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return output


@dataclass
class Trained:
    """A run in MLflow, read back."""

    tracking: Path
    run: Run
    client: MlflowClient

    def curve(self, name: str) -> dict[int, float]:
        return {each.step: each.value for each in self.client.get_metric_history(self.run.info.run_id, name)}


def read_back(tracking: Path) -> Trained:
    client = MlflowClient(f"sqlite:///{tracking / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("processes")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return Trained(tracking, run, client)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pictures")
    for label in COLORS:
        (root / label).mkdir()
        for number in range(12):
            draw(label, number).save(root / label / f"{number:02}.png")
    return root


def settings(pictures: Path, place: Path) -> list[str]:
    """Batches of seven: two processes cannot share them evenly, nor the four images of the last one."""
    return [
        *("--config", "quickstart", "--name", "processes"),
        *("--data.kind", "folder", "--data.root", str(pictures)),
        *("--cache", str(place / "cache"), "--tracking.root", str(place / "mlruns")),
        *("--tracking.system_metrics", "false", "--model.arch", "vgg11", "--model.pool", "1"),
        *("--model.width", "16", "--augment.resize", "36", "--augment.crop", "32", "--augment.views", "2"),
        *(
            "--train.epochs",
            "3",
            "--train.batch_size",
            "7",
            "--train.precision",
            "no",
            "--features.batch_size",
            "8",
        ),
        *("--schedule.kind", "constant", "--optim.name", "sgd", "--optim.lr", "0.05"),
        *("--tracking.model", "false", "--tracking.gallery", "0"),
    ]


def train_and_exit(words: list[str]) -> int:
    """`runner/train.py` in this process; returns its exit status."""
    return run_main(lambda: train.main(words))


@pytest.fixture(scope="module")
def trained(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Trained]:
    """The same experiment on one and on two processes, nothing shared but the pictures."""
    places = {count: tmp_path_factory.mktemp(f"on {count}") for count in (1, 2)}
    processes = start_two(places[2], train_and_exit, settings(pictures, places[2]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        assert train.main(settings(pictures, places[1])) == 0
    finish_two(places[2], processes)
    return {count: read_back(place / "mlruns") for count, place in places.items()}


@pytest.fixture(scope="module")
def evaluated(trained: dict[int, Trained]) -> dict[int, dict[str, Any]]:
    """The run of two processes, evaluated again on one, in this process, and on three."""
    on_two = trained[2]
    words = ("evaluate", on_two.run.info.run_id, "--json", "--tracking.root", str(on_two.tracking))
    three = start("-m", "runner.cli.main", *words, "-n", "3")
    one = in_process(*words)
    assert one.returncode == 0, one.stderr
    return {1: json.loads(one.stdout), 3: json.loads(finish(three))}


class TestTraining:
    def test_finished(self, trained: dict[int, Trained]) -> None:
        assert [each.run.info.status for each in trained.values()] == ["FINISHED", "FINISHED"]

    def test_two_processes_were_two(self, trained: dict[int, Trained]) -> None:
        devices = [trained[count].run.data.tags["runner.device"] for count in (1, 2)]
        assert not devices[0].startswith("2 × ")
        assert devices[1].startswith("2 × ")

    @pytest.mark.parametrize("name", ["train/loss", "val/loss"])
    def test_first_epoch_has_the_same_loss(self, trained: dict[int, Trained], name: str) -> None:
        one, two = (trained[count].curve(name) for count in (1, 2))
        assert sorted(one) == sorted(two) == [1, 2, 3]
        assert two[1] == pytest.approx(one[1], rel=1e-5)

    @pytest.mark.parametrize("name", ["train/loss", "val/loss"])
    def test_later_epochs_stay_together(self, trained: dict[int, Trained], name: str) -> None:
        one, two = (trained[count].curve(name) for count in (1, 2))
        assert [two[epoch] for epoch in (2, 3)] == pytest.approx([one[epoch] for epoch in (2, 3)], rel=1e-3)
        assert one[3] != one[1]

    def test_images_were_counted_once(self, trained: dict[int, Trained]) -> None:
        for name in ("train/top1", "val/top1", "test/best/top1", "test/last/top1"):
            one, two = (trained[count].curve(name) for count in (1, 2))
            assert one == two, name
            images = 18 if name.startswith("train") else 9
            for share in two.values():
                assert share * images == pytest.approx(round(share * images), abs=1e-9)

    def test_test_scores_are_equal(self, trained: dict[int, Trained]) -> None:
        for which in ("best", "last"):
            for name in ("top1", "top5", "balanced_accuracy"):
                one, two = (trained[count].run.data.metrics[f"test/{which}/{name}"] for count in (1, 2))
                assert one == two

    def test_rows_were_computed_once_on_both(self, trained: dict[int, Trained]) -> None:
        computed = [trained[count].run.data.metrics["system/features/misses"] for count in (1, 2)]
        assert computed == [2 * 18 + 9 + 9] * 2


@pytest.mark.slow
class TestEvaluation:
    def test_counts_do_not_depend_on_the_processes(self, evaluated: dict[int, dict[str, Any]]) -> None:
        assert [report["processes"] for report in evaluated.values()] == [1, 3]
        counts = [
            {
                which: [
                    scores[name]
                    for name in ("epoch", "images", "hits1", "hits5", "top1", "top5", "balanced_accuracy")
                ]
                for which, scores in report["checkpoints"].items()
            }
            for report in evaluated.values()
        ]
        assert sorted(counts[0]) == ["best", "last"]
        assert counts[0] == counts[1]
        losses = [report["checkpoints"]["best"]["loss"] for report in evaluated.values()]
        assert losses == pytest.approx([losses[0]] * 2, rel=1e-5)

    def test_counts_are_those_of_the_run(
        self, trained: dict[int, Trained], evaluated: dict[int, dict[str, Any]]
    ) -> None:
        recorded = trained[2].run.data.metrics
        for report in evaluated.values():
            assert (report["split"], report["images"]) == ("test", 9)
            for which, scores in report["checkpoints"].items():
                assert scores["images"] == 9
                assert scores["hits1"] / 9 == recorded[f"test/{which}/top1"]
                assert scores["hits5"] / 9 == recorded[f"test/{which}/top5"]
                assert scores["balanced_accuracy"] == recorded[f"test/{which}/balanced_accuracy"]
                assert scores["loss"] == pytest.approx(recorded[f"test/{which}/loss"], rel=1e-5)


@pytest.mark.slow
class TestFewerThanAskedFor:
    def test_is_refused_with_a_sentence(self, pictures: Path, tmp_path: Path) -> None:
        launcher = accelerate("--cpu", "--num_processes", "2", TRAIN, *settings(pictures, tmp_path))
        _, errors = launcher.communicate(timeout=120)
        assert launcher.returncode != 0
        (sentence,) = [line for line in errors.splitlines() if line.startswith("runner: ")]
        assert "2 processes were requested, but 1 started" in sentence
        assert "--multi_gpu" in sentence
        assert not (tmp_path / "mlruns").exists()
