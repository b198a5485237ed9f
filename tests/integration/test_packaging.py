"""A packaged model: what its folder holds, and that MLflow loads it where the runner is not installed."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import subprocess
import sys
import threading
from base64 import b64decode
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers import CLASSES, Make, Recorder, small_model
from loaded import INFERENCE
from pictures import draw
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from runner import load_model
from runner.data.files import FolderFiles
from runner.data.images import Entry, Images
from runner.data.manifest import Manifest
from runner.models.transfer_model import TransferModel
from runner.serving import packaging
from runner.training.callbacks.log_model import LogModelCallback


@pytest.fixture(scope="module")
def trained() -> TransferModel:
    """A model whose batch-norm statistics are not the initial ones."""
    model = small_model(arch="vgg11_bn").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.add_(torch.rand(value.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def example() -> Tensor:
    return torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def packaged(trained: TransferModel, example: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a run would log."""
    folder = tmp_path_factory.mktemp("packaged") / "model"
    description = packaging.describe(trained, INFERENCE, epoch=2, val={"top1": 0.5})
    packaging.save_model(trained, description, example, folder)
    return folder


# Its files


def test_the_description_has_everything_that_inference_needs(packaged: Path, trained: TransferModel) -> None:
    files = packaged / "artifacts" / "classifier"
    description = json.loads((files / "model.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["model"]["arch"] == "vgg11_bn"
    assert (description["transform"], description["precision"]) == (INFERENCE["transform"], "no")
    assert (description["epoch"], description["val"]) == (2, {"top1": 0.5})
    names = {"frozen.safetensors": "frozen_sha256", "model.safetensors": "sha256"}
    for name, digest in names.items():
        assert description[digest] == hashlib.sha256((files / name).read_bytes()).hexdigest()
    frozen, rest = (load_file(files / name) for name in names)
    assert (frozen.keys(), rest.keys()) == (trained.frozen_state().keys(), trained.trainable_state().keys())
    assert frozen.keys() | rest.keys() == trained.state_dict().keys()
    assert sorted(path.name for path in files.iterdir()) == [
        "frozen.safetensors",
        "model.json",
        "model.safetensors",
    ]
    assert sorted(path.name for path in packaged.parent.iterdir()) == ["model"], "nothing is left beside it"


def test_mlflows_description_has_signature_example_and_requirements(packaged: Path) -> None:
    description = yaml.safe_load((packaged / "MLmodel").read_text())
    code = packaged / "code"  # which MLflow does not count
    files = [path for path in packaged.rglob("*") if path.is_file() and not path.is_relative_to(code)]
    sizes = [path.stat().st_size for path in files if path.name != "MLmodel"]
    assert description["model_size_bytes"] == pytest.approx(sum(sizes), abs=10_000)
    signature = description["signature"]
    assert [column["name"] for column in json.loads(signature["inputs"])] == ["image"]
    assert [column["name"] for column in json.loads(signature["outputs"])] == ["top"]
    assert [(param["name"], param["default"]) for param in json.loads(signature["params"])] == [("top", 5)]
    assert description["saved_input_example_info"]["artifact_path"] == "input_example.json"
    requirements = (packaged / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in requirements} == set(packaging.REQUIREMENTS)
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements


def test_the_input_example_is_the_given_image(packaged: Path, example: Tensor) -> None:
    (text,) = json.loads((packaged / "input_example.json").read_text())["image"]
    with Image.open(io.BytesIO(b64decode(text, validate=True))) as picture:
        assert np.array_equal(np.asarray(picture), example.permute(1, 2, 0).numpy())


def test_its_code_is_all_of_the_portable_package_and_imports_nothing_of_the_runner(packaged: Path) -> None:
    code = packaged / "code" / "portable"
    expected = {path.relative_to(packaging.PORTABLE) for path in packaging.PORTABLE.rglob("*.py")}
    assert {path.relative_to(code) for path in code.rglob("*.py")} == expected
    for path in [*code.rglob("*.py"), *packaged.glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            roots = {name.partition(".")[0] for name in names}
            assert not roots & {"runner", "pickle", "cloudpickle"}, path


def test_no_file_is_a_pickle(packaged: Path) -> None:
    for path in (path for path in packaged.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK\x03\x04")), path
        if path.suffix != ".safetensors":
            content.decode()
    assert not [
        path for path in packaged.rglob("*") if path.suffix in (".pkl", ".pth", ".pt", ".bin", ".pyc")
    ]


# Without the runner

WITHOUT_THE_RUNNER = """
import base64, json, os, pathlib, pickle, sys

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "runner":
            raise ImportError("the runner is not installed")

sys.meta_path.insert(0, Blocker())
folder, *images = sys.argv[1:]
import mlflow.pyfunc

model = mlflow.pyfunc.load_model(folder)

def refuse(*_, **__):
    raise AssertionError("a pickle was read")

pickle.load = pickle.loads = pickle.Unpickler = refuse
import pandas

table = pandas.DataFrame({"image": [base64.b64encode(pathlib.Path(path).read_bytes()).decode() for path in images]})
example = json.loads((pathlib.Path(folder) / "input_example.json").read_text())
print(json.dumps({
    "all": model.predict(table),
    "first": model.predict(table, params={"top": 1}),
    "example": model.predict(example),
    "imported": [name for name in sys.modules if name.partition(".")[0] == "runner"],
}))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three images, one of each class."""
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{label}.png" for label in CLASSES]
    for label, path in zip(CLASSES, paths, strict=True):
        draw(label, 1).save(path)
    return paths


@pytest.fixture(scope="module")
def answers(packaged: Path, files: list[Path]) -> Any:
    """What MLflow's model answers in a process that cannot import the runner."""
    words = [sys.executable, "-I", "-c", WITHOUT_THE_RUNNER, str(packaged), *map(str, files)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=files[0].parent)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_mlflow_loads_it_without_the_runner(packaged: Path, files: list[Path], answers: Any) -> None:
    predictions = [prediction.as_dict() for prediction in load_model(packaged, device="cpu").predict(files)]
    assert answers["imported"] == []
    assert answers["all"] == [{"top": prediction["top"]} for prediction in predictions]
    assert answers["first"] == [{"top": prediction["top"][:1]} for prediction in predictions]


@pytest.mark.slow
def test_it_takes_its_own_input_example(answers: Any) -> None:
    assert [set(row) for row in answers["example"]] == [{"top"}]


def test_a_request_is_decoded_batch_by_batch() -> None:
    from runner.portable.serve import ServedClassifier

    events: list[object] = []

    class Fake:
        def load_image(self, _file: object, max_pixels: int) -> Tensor:
            events.append(max_pixels)
            return torch.zeros(3, 2, 2)

        def top_k(self, images: Tensor, count: int) -> list[list[tuple[str, float]]]:
            events.append((len(images), count))
            return [[("red", 1.0)]] * len(images)

    served = ServedClassifier()
    served.classifier, served.decoding, served.batch_size = Fake(), threading.Lock(), 8
    served.max_images, served.max_pixels = 19, 77
    answer = served.predict(None, {"image": ["aaaa"] * 19}, {"top": 2})
    assert answer == [{"top": [{"class": "red", "probability": 1.0}]}] * 19
    assert events == [*[77] * 8, (8, 2), *[77] * 8, (8, 2), *[77] * 3, (3, 2)]
    assert served.predict(None, {"image": []}) == []


# Logging


@pytest.mark.parametrize(
    ("wanted", "logged", "count"), [(True, False, 1), (True, True, 0), (False, False, 0)]
)
def test_a_model_is_logged_once_if_it_is_wanted(
    make: Make,
    example: Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wanted: bool,
    logged: bool,
    count: int,
) -> None:
    class Loader:
        def batches(self, *_: object) -> Any:
            return iter([example[None]])

    tracker = Recorder(tmp_path / "run")
    monkeypatch.setattr(tracker, "has_logged", lambda *_: logged)
    (tmp_path / "run" / "model").mkdir(parents=True)
    (tmp_path / "run" / "model" / "part of an interrupted run").touch()
    experiment = make("--tracking.model", str(wanted).lower())
    val = SimpleNamespace(to_dict=lambda: {"top1": 0.5}, metrics=lambda prefix: {f"{prefix}/top1": 0.5})
    result = SimpleNamespace(best_epoch=SimpleNamespace(number=3, val=val))
    manifest = Manifest(FolderFiles(tmp_path), Images.of([Entry("red/0.png", "red", "val", 1, "0" * 40)]))
    setup = SimpleNamespace(
        experiment=experiment, model=small_model().eval(), manifest=manifest, loader=Loader()
    )
    monkeypatch.setattr("runner.training.callbacks.log_model.model_card", lambda *_: "# A card")
    LogModelCallback(setup, tracker).on_test_end(result, None)  # type: ignore[arg-type]
    assert len(tracker.models) == count
    if count:
        assert load_model(tmp_path / "run" / "model", device="cpu").classes == CLASSES
        assert (tmp_path / "run" / "model" / "README.md").read_text() == "# A card"
