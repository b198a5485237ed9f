"""The model of a finished run: what is logged and registered, how it is found, and what it predicts."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from commands import one_sentence
from helpers import CLASSES
from trained import TrainedRun

from runner import load_model
from runner.cli import main
from runner.serving.predictor import LoadedModel
from runner.tracking.model_registry import MODEL_TAG
from runner.utils.errors import UserError

Command = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture(scope="module")
def model(trained_run: TrainedRun) -> LoadedModel:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        return load_model(tracking=trained_run.tracking, device="cpu")


@pytest.fixture(scope="module")
def files(trained_run: TrainedRun) -> list[Path]:
    """Three images, one of each class."""
    return [trained_run.pictures / label / "00.png" for label in CLASSES]


@pytest.fixture
def command(trained_run: TrainedRun, capfd: pytest.CaptureFixture[str]) -> Command:
    """`command("predict", …)` on the trained run: status, standard output and standard error."""

    def run(*words: object, tracking: str = "") -> tuple[int, str, str]:
        capfd.readouterr()
        status = main.main([*map(str, words), "--tracking.root", tracking or trained_run.tracking])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def refused(command: Command) -> Callable[..., str]:
    """`refused("predict", …)`: the one sentence with which the command is refused."""

    def run(*words: object, tracking: str = "") -> str:
        status, _, err = command(*words, tracking=tracking)
        assert status == 2, err
        return one_sentence(err)

    return run


# What a run logs


def test_a_finished_run_logs_a_model_and_makes_it_champion(trained_run: TrainedRun) -> None:
    client = trained_run.client
    run = client.get_run(trained_run.run_id)
    (logged,) = client.search_logged_models([run.info.experiment_id])
    assert run.data.tags[MODEL_TAG] == logged.model_id
    assert logged.status == "READY"
    metrics = {metric.key: metric.value for metric in logged.metrics}
    assert metrics["val/top1"] == run.data.metrics["val/best/top1"]
    version = client.get_model_version_by_alias("small", "champion")
    assert (str(version.version), version.run_id) == ("1", trained_run.run_id)
    assert "champion" in run.data.tags["runner.champion"]
    folder = trained_run.logged_model() / "artifacts" / "classifier"
    description = json.loads((folder / "model.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["transform"] == {"resize": 36, "crop": 32, "interpolation": "bilinear"}
    assert description["run"] == trained_run.run_id
    assert description["epoch"] == run.data.metrics["best_epoch"]


def test_the_model_card_says_what_the_model_is_and_how_good(trained_run: TrainedRun) -> None:
    card = (trained_run.logged_model() / "README.md").read_text(encoding="utf-8")
    _, header, text = card.split("---\n", 2)
    assert yaml.safe_load(header)["pipeline_tag"] == "image-classification"
    rows = dict(
        line.strip("| ").split(" | ", 1)
        for line in text.splitlines()
        if line.startswith("| ") and "|  |" not in line
    )
    top1 = trained_run.client.get_run(trained_run.run_id).data.metrics["test/best/top1"]
    value, interval = rows["top-1"].split(" | ")
    low, high = map(float, interval.split(" to "))
    assert float(value) == pytest.approx(top1, abs=1e-4)
    assert 0 <= low <= top1 <= high <= 1
    assert (rows["Model"], rows["Run"]) == ("vgg11, pooled head", trained_run.run_id)
    assert "random weights" in rows["Pretrained weights"]
    assert f'load_model("{trained_run.run_id[:8]}")' in text


def test_no_file_of_a_logged_model_is_a_pickle(trained_run: TrainedRun) -> None:
    files = [path for path in trained_run.logged_model().rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {"", ".py", ".json", ".yaml", ".txt", ".md", ".safetensors"}
    for path in files:
        assert not path.read_bytes().startswith((b"\x80", b"PK\x03\x04")), path


WITHOUT_THE_RUNNER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "runner":
            raise ImportError("the runner is not installed")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1] + "/code")
import json, pathlib, torch
from portable.classifier import Classifier
classifier = Classifier.load(pathlib.Path(sys.argv[1]) / "artifacts" / "classifier", "cpu")
images = torch.stack([classifier.load_image(path) for path in sys.argv[2:]])
print(json.dumps(classifier.top_k(images, 9)))
assert not [name for name in sys.modules if name.partition(".")[0] in ("runner", "accelerate", "mlflow", "optuna")]
"""


def rows(model: LoadedModel, paths: list[Path]) -> list[list[list[object]]]:
    """All classes with their probabilities, for each file."""
    return [
        [[item.name, item.probability] for item in prediction.top] for prediction in model.predict(paths, 9)
    ]


def test_a_logged_model_works_without_the_runner(
    trained_run: TrainedRun, model: LoadedModel, files: list[Path]
) -> None:
    words = [sys.executable, "-c", WITHOUT_THE_RUNNER, str(trained_run.logged_model()), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == rows(model, files)


def test_predictions_are_those_of_the_run(trained_run: TrainedRun, model: LoadedModel) -> None:
    text = trained_run.artifact("predictions.csv").read_bytes().decode()
    recorded = list(csv.DictReader(io.StringIO(text, newline="")))
    assert len(recorded) == 9
    predictions = model.predict([trained_run.pictures / row["path"] for row in recorded])
    for row, prediction in zip(recorded, predictions, strict=True):
        assert prediction.top[0].name == row["predicted"]
        assert prediction.top[0].probability == pytest.approx(float(row["probability"]), abs=1e-5)


# How a model is found


def test_a_model_is_found_by_every_kind_of_reference(
    trained_run: TrainedRun, model: LoadedModel, files: list[Path]
) -> None:
    checkpoints = trained_run.artifact("checkpoints")
    logged = trained_run.logged_model()
    model_id = trained_run.client.get_run(trained_run.run_id).data.tags[MODEL_TAG]
    for reference in (
        trained_run.run_id,
        trained_run.run_id[:8],
        f"runs:/{trained_run.run_id}/model",
        "latest",
        "small@champion",
        "small@1",
        "models:/small@champion",
        "models:/small/1",
        model_id,
        str(logged),
        logged / "artifacts" / "classifier",
        str(checkpoints / "best.safetensors"),
        checkpoints,
    ):
        loaded = load_model(reference, trained_run.tracking, "cpu")
        assert rows(loaded, files) == rows(model, files), reference


def test_a_model_is_found_from_any_folder(
    trained_run: TrainedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_tracking_uri: None
) -> None:
    """The records are in the folder above, or where MLFLOW_TRACKING_URI says."""
    monkeypatch.chdir(trained_run.pictures / "red")
    assert load_model(device="cpu").source.startswith(f"run {trained_run.run_id[:8]} ")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no records"):
        load_model(device="cpu")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained_run.tracking}/mlflow.db")
    assert load_model("small@champion", device="cpu").classes == ("blue", "green", "red")


def test_the_newest_finished_run_is_the_default_and_is_named(
    trained_run: TrainedRun, command: Command, files: list[Path]
) -> None:
    client = trained_run.client
    run = client.get_run(trained_run.run_id)
    failed = client.create_run(run.info.experiment_id, run_name="failed").info.run_id
    client.set_tag(failed, MODEL_TAG, "m-none")
    client.set_terminated(failed, "FAILED")
    running = client.create_run(run.info.experiment_id, run_name="running").info.run_id
    try:
        status, out, err = command("predict", files[0])
    finally:
        client.delete_run(failed)
        client.delete_run(running)
    assert (status, err) == (0, "")
    assert out.splitlines()[0] == f"run {run.info.run_id[:8]} (small, {run.info.run_name}), 3 classes"
    assert out.splitlines()[2] == str(files[0])


def test_a_run_without_a_model_is_used_by_its_checkpoint(
    trained_run: TrainedRun,
    model: LoadedModel,
    files: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stopped run, or one with tracking.model=false."""
    client = trained_run.client
    experiment = client.get_run(trained_run.run_id).info.experiment_id
    checkpoints, settings = (trained_run.artifact(name) for name in ("checkpoints", "experiment.yaml"))
    stopped = client.create_run(experiment, run_name="stopped").info.run_id
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(downloads))
    try:
        client.log_artifacts(stopped, str(checkpoints), "checkpoints")
        with pytest.raises(UserError, match=r"experiment\.yaml"):
            load_model("stopped", trained_run.tracking, "cpu")
        client.log_artifact(stopped, str(settings))
        client.set_terminated(stopped, "KILLED")
        loaded = load_model("stopped", trained_run.tracking, "cpu")
    finally:
        client.delete_run(stopped)
    assert f"run {stopped[:8]} (small, stopped), epoch" in loaded.source
    assert rows(loaded, files) == rows(model, files)
    assert list(downloads.iterdir()) == [], "downloads are removed"


def test_a_run_without_model_and_checkpoint_is_refused(
    trained_run: TrainedRun, refused: Callable[..., str], files: list[Path]
) -> None:
    client = trained_run.client
    experiment = client.get_run(trained_run.run_id).info.experiment_id
    bare = client.create_run(experiment, run_name="bare").info.run_id
    try:
        for reference in (bare, bare[:8], "bare"):
            sentence = refused("predict", files[0], "--model", reference)
            assert sentence.startswith(f"Run {bare[:8]} (bare, RUNNING) has no model and no checkpoint")
    finally:
        client.delete_run(bare)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("small@2", "no version or alias '2'; give a version number or one of its aliases (champion"),
        ("small@best", "no version or alias 'best'"),
        ("small@", "no version or alias ''"),
        ("models:/smal@champion", "There is no registered model 'smal' (did you mean 'small'?)"),
        ("@champion", "There is no registered model ''; there are small"),
        ("m-0123", "There is no logged model 'm-0123'"),
        ("zzz", "There is no run 'zzz'"),
        ("small", "'small' is an experiment, not a run; give small@champion or one of its runs"),
        ("nowhere/best.safetensors", "There is no nowhere/best.safetensors"),
        ("a" * 300, "There is no"),
    ],
    ids=lambda text: text[:25],
)
def test_unknown_models_are_refused_in_one_sentence(
    refused: Callable[..., str], files: list[Path], reference: str, message: str
) -> None:
    assert message in refused("predict", files[0], "--model", reference)


def test_a_folder_without_a_run_is_refused(
    refused: Callable[..., str], files: list[Path], small: list[str], tmp_path: Path
) -> None:
    assert "There are no records" in refused("predict", files[0], tracking=str(tmp_path / "none"))
    assert "There are no runs yet" in refused("predict", files[0], tracking=str(tmp_path / "mlruns"))


# Commands


@pytest.mark.slow
def test_the_champion_is_exported_to_onnx(command: Command, files: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    status, out, _ = command("export", "--model", "small@champion", "--onnx", tmp_path / "model.onnx")
    assert status == 0, out
    assert (tmp_path / "model.onnx").stat().st_size > 10**6


def test_predict_and_explain_load_the_model_in_a_second_process(
    command: Command, model: LoadedModel, files: list[Path], tmp_path: Path
) -> None:
    status, out, err = command("predict", files[0], "--json")
    assert status == 0, err
    assert json.loads(out) == [prediction.as_dict() for prediction in model.predict(files[:1])]
    assert "small" in err, "it names the run"
    status, out, err = command("explain", files[0], "--out", tmp_path / "out")
    assert status == 0, err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["00.gradcam.png"]


def test_runner_explain_shows_what_can_be_read(command: Command, files: list[Path], tmp_path: Path) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken.png"
    broken.write_bytes(b"nothing")
    status, printed, errors = command("explain", files[0], broken, "--model", "latest", "--out", out)
    assert status == 1, errors
    assert [path.name for path in out.rglob("*.png")] == ["00.gradcam.png"]
    assert str(broken) in one_sentence(errors)
    assert "/00.gradcam.png: " in printed.replace("\n", "")
