"""The frozen weights of the runs of a store lie on disk once, and each run and model still has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator
from helpers import QUIET
from pictures import small_experiment
from stores import copy_store

from runner import load_model
from runner.config.parser import parse
from runner.config.repeat import Repeat
from runner.tracking.mlflow_server import tracking_server
from runner.training.repeated import train


@pytest.fixture(scope="module")
def root(
    tmp_path_factory: pytest.TempPathFactory, images: Path, mlflow_template: Path, accelerator: Accelerator
) -> Path:
    """Records of two runs of different heads on the same backbone."""
    folder = tmp_path_factory.mktemp("shared")
    root = copy_store(mlflow_template, folder / "mlruns")
    words = [*small_experiment(images, folder / "cache", root), "--tracking.model", "true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        patch.delenv("MLFLOW_TRACKING_URI")
        patch.setattr("runner.training.curves.draw_curves", lambda *args: [file.touch() for file in args[2:]])
        for width in ("16", "8"):
            fast = ("--train.epochs", "1", "--features.compile", "false", "--model.width", width)
            train(parse([*words, *fast])[0], Repeat(), accelerator, QUIET)
    return root


@pytest.fixture(autouse=True)
def _no_server(no_tracking_uri: None) -> None:
    pass


def test_the_frozen_weights_lie_on_disk_once(root: Path) -> None:
    files = sorted(root.rglob("*.safetensors"))
    names = [path.name for path in files]
    assert names.count("frozen.safetensors") == 4, "of two runs and two models"
    (shared,) = (root / "frozen").iterdir()
    assert all(path.samefile(shared) for path in files if path.name == "frozen.safetensors")
    assert shared.stat().st_nlink == 5, "nothing is left in a journal"
    others = [path for path in files if path.parent != shared.parent and path.name != "frozen.safetensors"]
    assert max(path.stat().st_size for path in others) < shared.stat().st_size / 50


def test_models_are_complete_without_the_others(root: Path, tmp_path: Path, images: Path) -> None:
    copy = tmp_path / "mlruns"
    version = tracking_server(str(root)).connect().get_model_version("small", "1")
    model = Path(version.source.removeprefix("file://"))
    expected = load_model(model, device="cpu").predict(images / "red" / "00.png")
    shutil.copytree(model, copy)
    assert load_model(copy, device="cpu").predict(images / "red" / "00.png") == expected
    assert not any(path.stat().st_nlink > 1 for path in copy.rglob("*") if path.is_file())


def test_a_run_that_is_removed_leaves_the_others_whole(root: Path, images: Path) -> None:
    client = tracking_server(str(root)).connect()
    experiment = client.get_experiment_by_name("small").experiment_id
    first, second = client.search_runs([experiment], order_by=["attributes.start_time"])
    shutil.rmtree(Path(first.info.artifact_uri.removeprefix("file://")) / "checkpoints")
    checkpoint = Path(second.info.artifact_uri.removeprefix("file://")) / "checkpoints" / "best.safetensors"
    predictions = [load_model(each, str(root), "cpu") for each in (checkpoint, first.info.run_id)]
    assert all(model.predict(images / "red" / "00.png")[0].top for model in predictions)
