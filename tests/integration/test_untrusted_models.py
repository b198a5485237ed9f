"""Models and weights from others: code in them or beside them never runs, and nothing is written elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Make, small_model
from http_servers import SECRET, answering
from pictures import draw
from stores import Store

from runner import load_model
from runner.cli import main
from runner.models.pretrained import read_weights
from runner.portable.classifier import BATCH_SIZE
from runner.serving import packaging
from runner.serving.locate import _download
from runner.utils.errors import UserError
from runner.utils.exit_status import run_main

pytestmark = pytest.mark.usefixtures("plain_environment")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.system, (f"touch '{self.marker}'",)


# Weights


def weights_file(folder: Path, kind: str, marker: Path) -> Path:
    """A file of weights that runs a command when it is unpickled."""
    path = folder / f"{kind}.pth"
    if kind == "bare":
        path.write_bytes(pickle.dumps(Payload(marker)))
    else:
        content = {"features.0.weight": torch.zeros(1), "more": Payload(marker)}
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zipped")
    return path


@pytest.mark.parametrize("kind", ["zipped", "old", "bare"])
def test_code_in_weights_does_not_run(
    make: Make, tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "it ran"
    path = weights_file(tmp_path, kind, marker)
    experiment = make("--model.weights", str(path))
    assert run_main(lambda: read_weights(experiment.model) and None) == 2
    errors = capfd.readouterr().err
    assert errors.startswith(f"runner: {path} ")
    assert "was not loaded" in errors
    assert errors.count("\n") == 1
    assert main.main(["predict", str(path), "--model", str(path)]) == 2
    assert "Pickled files are not opened" in capfd.readouterr().err
    assert not marker.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.load(path, weights_only=False) if kind != "bare" else pickle.loads(path.read_bytes())
    assert marker.exists(), "the payload works"


# Models


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, saved as a run logs it."""
    network = small_model().eval()
    transform = {"resize": 36, "crop": 32, "interpolation": "bilinear"}
    inference = {"name": "small", "transform": transform, "precision": "no"}
    description = packaging.describe(network, inference, epoch=1, val={}, run="run", manifest="m")
    folder = tmp_path_factory.mktemp("packed") / "model"
    packaging.save_model(network, description, torch.zeros(3, 32, 32, dtype=torch.uint8), folder)
    return folder


def poison(folder: Path, marker: Path) -> None:
    """Put code that creates a file into every place from which MLflow runs code."""
    run = f"import os\nos.system({f'touch {str(marker)!r}'!r})\n"
    for place in ("code", "code/portable"):
        (folder / place).mkdir(parents=True, exist_ok=True)
        for name in ("__init__", "serve", "classifier", "model", "sitecustomize", "torch", "mlflow"):
            (folder / place / f"{name}.py").write_text(run)
    (folder / "serve.py").write_text(run)
    for name in ("python_model.pkl", "model.pkl", "data.pkl", "model.pth"):
        (folder / name).write_bytes(pickle.dumps(Payload(marker)))
    (folder / "artifacts").mkdir(exist_ok=True)
    (folder / "artifacts" / "sitecustomize.py").write_text(run)


PICKLED = """\
flavors:
  python_function:
    cloudpickle_version: 3.1.2
    code: code
    env: {virtualenv: python_env.yaml}
    loader_module: mlflow.pyfunc.model
    python_model: python_model.pkl
    python_version: 3.11.0
"""


def register(store: Store, folder: Path, name: str) -> str:
    """Log and register a folder as a model. Returns the run's id."""
    server, client = store
    run_id = client.create_run(server.get_or_create_experiment(client, name)).info.run_id
    client.log_artifacts(run_id, str(folder), "model")
    client.create_registered_model(name)
    client.create_model_version(name, f"{client.get_run(run_id).info.artifact_uri}/model", run_id)
    return str(run_id)


def test_a_pickled_model_is_refused_and_does_not_run(
    mlflow_store: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    marker, folder, picture = tmp_path / "it ran", tmp_path / "evil", tmp_path / "picture.png"
    folder.mkdir()
    poison(folder, marker)
    (folder / "MLmodel").write_text(PICKLED)
    draw("red", 0).save(picture)
    run_id = register(mlflow_store, folder, "evil")
    for reference in ("evil@1", run_id, "models:/evil/1", str(folder), str(folder / "python_model.pkl")):
        words = ["predict", str(picture), "--model", reference, "--tracking.root", str(tmp_path / "mlruns")]
        assert main.main(words) == 2, reference
        errors = capfd.readouterr().err
        assert errors.startswith("runner: ")
        assert errors.count("\n") == 1
    assert not marker.exists()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    pickle.loads((folder / "python_model.pkl").read_bytes())
    assert marker.exists(), "the payload works"


def test_code_beside_a_model_does_not_run(
    mlflow_store: Store, packed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Inference reads the two files of a model. Code that MLflow would run lies beside them."""
    marker, folder, picture = tmp_path / "it ran", tmp_path / "model", tmp_path / "picture.png"
    shutil.copytree(packed, folder)
    poison(folder, marker)
    poison(folder / "artifacts" / "classifier", marker)
    draw("red", 0).save(picture)
    register(mlflow_store, folder, "both")
    for reference in ("both@1", str(folder)):
        words = [
            "predict",
            str(picture),
            "--model",
            reference,
            "--tracking.root",
            str(tmp_path / "mlruns"),
            "--json",
        ]
        assert main.main(words) == 0, capfd.readouterr().err
        assert json.loads(capfd.readouterr().out)[0]["path"] == str(picture)
    assert len(load_model(folder).predict([picture] * (BATCH_SIZE + 1))) == BATCH_SIZE + 1
    assert not marker.exists()


def everything(folder: Path) -> set[str]:
    """Paths of all files and folders, relative to `folder`."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ["../../evil", "/{place}/evil", "..%2F..%2Fevil", "a/../../../evil"])
def test_a_server_cannot_write_files_elsewhere(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tmp").mkdir()
    listed = {"files": [{"path": name.format(place=tmp_path), "is_dir": False, "file_size": 2}]}
    with (
        answering(200, json.dumps(listed).encode()) as uri,
        pytest.raises(UserError, match="cannot be downloaded from") as refused,
    ):
        _download(f"{uri}/api/2.0/mlflow-artifacts/artifacts/1/models/m", "model")
    assert SECRET not in str(refused.value)
    assert everything(tmp_path) == {"tmp"}
