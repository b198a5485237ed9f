"""`runner evaluate`: the metrics of a finished run again, and its report in MLflow."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from commands import client_of, command, one_sentence, runner, runs_of
from objects import OBJECTS, SIDE, SIZE, Corners, objects_words, write_objects
from PIL import Image
from stores import copy_store

from runner import train
from runner.cli import evaluate as evaluate_command
from runner.cli import main
from runner.evaluation import report
from runner.evaluation.predictions import read_predictions
from runner.utils.exit_status import run_main

TEST = 24
"""Images of the test split."""
PLOTS = ("confusion_matrix", "reliability", "topk", "recall_by_class")
Evaluate = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def cpu_without_store() -> Iterator[None]:
    """The CPU, and no store but the one that a test names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        yield


@dataclass(frozen=True)
class ObjectsRun:
    """A finished run on pictures of objects whose boxes are known."""

    folder: Path
    boxes: dict[str, Corners]
    client: Any
    run_id: str

    @property
    def tracking(self) -> list[str]:
        return ["--tracking.root", str(self.folder / "mlruns")]

    def metrics(self, prefix: str) -> dict[str, float]:
        metrics = self.client.get_run(self.run_id).data.metrics
        return {
            name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)
        }

    def files(self, folder: str) -> list[str]:
        """Paths of the run's artifacts in a folder and below."""
        files: list[str] = []
        for each in self.client.list_artifacts(self.run_id, folder):
            files += self.files(each.path) if each.is_dir else [each.path]
        return sorted(files)

    def artifact(self, path: str) -> Path:
        return Path(self.client.download_artifacts(self.run_id, path))


@pytest.fixture(scope="module")
def objects_run(mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> ObjectsRun:
    folder = tmp_path_factory.mktemp("objects")
    copy_store(mlflow_template, folder / "mlruns")
    boxes = write_objects(folder / "pictures")
    assert run_main(lambda: train.main(objects_words(folder / "pictures", folder))) == 0
    client = client_of(folder)
    (run,) = runs_of(client, "objects")
    return ObjectsRun(folder, boxes, client, run.info.run_id)


@pytest.fixture
def evaluate(
    objects_run: ObjectsRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Evaluate:
    """`evaluate("--json")`: status, output and errors of `runner evaluate RUN`, launched in this process."""
    monkeypatch.setattr(
        "runner.cli.launcher.launch", lambda _script, words, _processes: evaluate_command.main(words)
    )
    monkeypatch.setattr(report, "GALLERY_SIZE", 1)

    def call(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.main(["evaluate", objects_run.run_id, *objects_run.tracking, *words])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def reported_run(objects_run: ObjectsRun) -> ObjectsRun:
    """The run with a report of its test split."""
    assert run_main(lambda: evaluate_command.main([objects_run.run_id, *objects_run.tracking])) == 0
    return objects_run


def write_boxes(folder: Path, boxes: dict[str, Corners]) -> Path:
    path = folder / "boxes.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "left", "top", "right", "bottom"))
        writer.writerows([name, *box] for name, box in boxes.items())
    return path


# The report


def test_a_run_logs_its_gallery(objects_run: ObjectsRun) -> None:
    files = objects_run.files("images")
    assert len(files) % 4 == 0, "two images, each in two files, at every step"
    steps = {int(name.split("+step+")[1].split("+")[0]) for name in files}
    best = int(objects_run.metrics("best_")["epoch"])
    assert steps == {0, best, 10}
    assert objects_run.client.get_run(objects_run.run_id).data.tags["mlflow.loggedImages"] == "True"


def test_a_report_has_all_its_files(reported_run: ObjectsRun) -> None:
    files = reported_run.files("evaluation/test")
    pictures = [name for name in files if "/galleries/" in name]
    assert set(files) - set(pictures) == {
        f"evaluation/test/{name}"
        for name in (
            *("report.html", "predictions.csv", "per_class.csv", "confused.csv"),
            *(f"{name}.png" for name in PLOTS),
        )
    }
    rows = read_predictions(reported_run.artifact("evaluation/test/predictions.csv").read_bytes().decode())
    errors = sum(not row.correct for row in rows)
    assert sum("/error-" in name for name in pictures) == min(12, errors)
    assert sum("/correct-" in name for name in pictures) == min(12, TEST - errors)
    for name in (*pictures, *(f"evaluation/test/{name}.png" for name in PLOTS)):
        with Image.open(reported_run.artifact(name)) as picture:
            assert picture.format == "PNG"
            picture.load()


def test_predictions_are_those_of_the_run(reported_run: ObjectsRun) -> None:
    table = reported_run.artifact("evaluation/test/predictions.csv").read_bytes()
    rows = read_predictions(table.decode())
    assert len(rows) == TEST
    assert sum(row.correct for row in rows) / TEST == reported_run.metrics("test/best/")["top1"]
    assert all(row.true == row.path.split("/")[0] for row in rows)
    assert table == reported_run.artifact("predictions.csv").read_bytes(), (
        "the table that the run itself logged"
    )


def test_a_page_is_one_file(reported_run: ObjectsRun) -> None:
    page = reported_run.artifact("evaluation/test/report.html").read_text(encoding="utf-8")
    pictures = [name for name in reported_run.files("evaluation/test") if "/galleries/" in name]
    assert page.count('src="data:image/') == len(pictures) + len(PLOTS)
    assert re.findall(r"""(?:src|href)=["'](?!data:|#)[^"']*""", page) == []
    assert reported_run.run_id in page
    for text in ("95 % interval", "Least confident correct", "Confusion matrix", "Calibration", *OBJECTS):
        assert text in page


def test_the_metrics_of_a_report_are_logged(reported_run: ObjectsRun) -> None:
    metrics = reported_run.metrics("evaluation/test/")
    scores = ("top1", "top5", "balanced_accuracy")
    names = {f"{name}_{bound}" for name in scores for bound in ("low", "high")}
    assert set(metrics) >= {*names, "ece", "ece_scaled", "temperature"}
    top1 = reported_run.metrics("test/best/")["top1"]
    assert 0 <= metrics["top1_low"] <= top1 <= metrics["top1_high"] <= 1
    assert metrics["top5_low"] == metrics["top5_high"] == 1, "there are three classes"


def test_a_second_report_replaces_the_first(
    reported_run: ObjectsRun, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw_nothing(_image: Any, _found: Any, _title: str, _label: str, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)

    monkeypatch.setattr(report, "GALLERY_SIZE", 12)
    monkeypatch.setattr("runner.explain.overlay.draw", draw_nothing)
    files, metrics = reported_run.files("evaluation"), reported_run.metrics("evaluation/")
    assert evaluate()[0] == 0
    assert reported_run.files("evaluation") == files
    assert reported_run.metrics("evaluation/") == metrics
    run = reported_run.client.get_run(reported_run.run_id)
    assert run.info.status == "FINISHED"
    assert len(reported_run.client.search_runs([run.info.experiment_id])) == 1


def test_a_report_of_validation_notes_that_its_temperature_is_optimistic(
    objects_run: ObjectsRun, evaluate: Evaluate, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "folder"
    status, output, _ = evaluate("--split", "val", "--out", str(out))
    assert status == 0
    assert str(out / "report.html") in output.replace("\n", "")
    inside = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert inside == [name.removeprefix("evaluation/val/") for name in objects_run.files("evaluation/val")]
    assert "too optimistic" in (out / "report.html").read_text(encoding="utf-8")
    assert "temperature" in objects_run.metrics("evaluation/val/")
    rows = read_predictions((out / "predictions.csv").read_bytes().decode())
    assert sum(row.correct for row in rows) / len(rows) == objects_run.metrics("val/best/")["top1"]


@pytest.mark.slow
def test_a_report_measures_whether_grad_cam_shows_the_objects(
    objects_run: ObjectsRun, evaluate: Evaluate, tmp_path: Path
) -> None:
    """With the boxes of all pictures, of which those of the split are used, and ROAD of a few."""
    boxes = write_boxes(tmp_path, objects_run.boxes)
    status, output, errors = evaluate("--boxes", str(boxes), "--faithfulness", "4")
    assert status == 0, errors
    metrics = objects_run.metrics("evaluation/test/")
    assert metrics["pointing_chance"] == pytest.approx(SIZE**2 / SIDE**2)
    assert metrics["pointing"] > max(0.5, 3 * metrics["pointing_chance"])
    assert metrics["pointing_energy"] > 1.25 * metrics["pointing_chance"]
    assert metrics["road_gain"] == pytest.approx(metrics["road"] - metrics["road_random"])
    assert metrics["road_gain_low"] < metrics["road_gain"] < metrics["road_gain_high"]
    assert metrics["road_gain"] > 0
    page = objects_run.artifact("evaluation/test/report.html").read_text(encoding="utf-8")
    assert f"{TEST} images with boxes" in page
    assert "ROAD on 4 images" in page
    assert f"{100 * metrics['pointing']:.1f}%" in output.replace("\n", "")


def test_a_report_that_mlflow_does_not_accept_is_saved(
    objects_run: ObjectsRun, evaluate: Evaluate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError("away")

    monkeypatch.setattr("mlflow.MlflowClient.log_artifacts", fail)
    status, output, _ = evaluate()
    assert status == 0
    folder = objects_run.folder / "mlruns" / "reports" / f"{objects_run.run_id}-test"
    assert (folder / "report.html").exists()
    text = output.replace("\n", "")
    assert "MLflow did not accept the report" in text
    assert str(folder / "report.html") in text


# The command line


def test_json_is_alone_on_standard_output(objects_run: ObjectsRun, evaluate: Evaluate) -> None:
    status, output, errors = evaluate("--json")
    assert status == 0
    result = json.loads(output)
    assert (result["run"], result["split"], result["images"]) == (objects_run.run_id, "test", TEST)
    for name, scores in result["checkpoints"].items():
        logged = objects_run.metrics(f"test/{name}/")
        assert {metric: scores[metric] for metric in logged} == logged
        assert scores["hits1"] == round(TEST * scores["top1"])
    assert set(result["checkpoints"]) == {"best", "last"}
    assert "report" in errors


def test_without_a_report_only_metrics_are_printed(objects_run: ObjectsRun, evaluate: Evaluate) -> None:
    before = objects_run.files("evaluation"), objects_run.metrics("evaluation/")
    status, output, _ = evaluate("--no-report", "--split", "train")
    assert status == 0
    assert "train split" in output
    assert "report" not in output
    assert (objects_run.files("evaluation"), objects_run.metrics("evaluation/")) == before


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--faithfulness", "1"], "2 images or more"),
        (["--faithfulness", "-3"], "2 images or more"),
        (["--faithfulness", "many"], "--faithfulness"),
        (["--no-report", "--boxes", "b.csv"], "--no-report"),
        (["--no-report", "--out", "there"], "--no-report"),
        (["--no-report", "--faithfulness", "2"], "--no-report"),
        (["--split", "tset"], "tset"),
    ],
    ids=" ".join,
)
def test_bad_command_lines_are_refused_before_a_launch(
    refused: Callable[[list[str]], str], words: list[str], reason: str
) -> None:
    assert reason in refused(["evaluate", "latest", *words])


@pytest.mark.parametrize("option", ["--boxes", "--out"])
def test_unusable_paths_are_refused(
    refused: Callable[[list[str]], str], objects_run: ObjectsRun, tmp_path: Path, option: str
) -> None:
    path = tmp_path / "nothing.csv"
    if option == "--out":
        path.write_text("a file, not a folder")
    words = ["evaluate", objects_run.run_id, *objects_run.tracking, option, str(path)]
    assert str(path) in refused(words)


# Several processes


@pytest.mark.slow
def test_two_processes_write_the_same_report(reported_run: ObjectsRun, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = reported_run.files("evaluation/test")
    words = ["evaluate", reported_run.run_id, "-n", "2", "--json", "--out", str(out), *reported_run.tracking]
    outcome = command(runner(*words))
    assert outcome.returncode == 0, outcome.stderr
    result = json.loads(outcome.stdout)
    assert (result["processes"], result["images"]) == (2, TEST)
    assert {f"evaluation/test/{path.relative_to(out)}" for path in out.rglob("*.*")} == set(files)
    two, one = (
        read_predictions(path.read_bytes().decode())
        for path in (out / "predictions.csv", reported_run.artifact("predictions.csv"))
    )
    assert [(row.path, row.predicted, row.rank) for row in two] == [
        (row.path, row.predicted, row.rank) for row in one
    ]


@pytest.mark.slow
def test_two_processes_refuse_bad_boxes_in_one_sentence(objects_run: ObjectsRun, tmp_path: Path) -> None:
    (tmp_path / "none.csv").write_text("path,left,top,right,bottom\n")
    words = ["evaluate", objects_run.run_id, "-n", "2", "--boxes", str(tmp_path / "none.csv")]
    outcome = command(runner(*words, *objects_run.tracking))
    assert outcome.returncode == 2, outcome.stderr
    assert "none.csv" in one_sentence(outcome.stderr)
