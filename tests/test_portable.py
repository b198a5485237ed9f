"""What goes along with a model: it computes what training did, alone, and refuses what it is not."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import pickle
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import draw
from helpers import CLASSES, small_network
from PIL import Image
from safetensors.torch import load_file, save_file

from runner import load_model
from runner.config.schema import AugmentConfig
from runner.data.transforms import EVALUATION_VIEW, ViewTransform
from runner.models.network import TransferModel
from runner.portable.classifier import BATCH_SIZE, Classifier, ModelError
from runner.portable.network import supported_precision
from runner.portable.transform import evaluation_transform
from runner.serving import packaging
from runner.utils.errors import UserError

USE = {
    "name": "small",
    "transform": {"resize": 36, "crop": 32, "interpolation": "bilinear"},
    "precision": "no",
}
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def network() -> TransferModel:
    """A network whose statistics are not those it was made with."""
    network = small_network(arch="vgg11_bn", training_seed=3).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if name.endswith(("running_mean", "running_var")):
                value.add_(torch.rand(value.shape, generator=generator))
    return network


@pytest.fixture(scope="module")
def views() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def packed(network: TransferModel, views: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network as a run would log it."""
    folder = tmp_path_factory.mktemp("packed") / "model"
    told = packaging.describe(network, USE, epoch=2, val={"top1": 0.5})
    packaging.save_model(network, told, views[0], folder)
    return folder


@pytest.fixture(scope="module")
def classifier(packed: Path) -> Classifier:
    return Classifier.load(packed / "artifacts" / "classifier", "cpu")


@pytest.fixture
def copied(packed: Path, tmp_path: Path) -> Path:
    """A copy of the model's two files."""
    return Path(shutil.copytree(packed / "artifacts" / "classifier", tmp_path / "copied"))


# What it computes


def test_a_loaded_model_computes_what_the_trained_network_did(
    network: TransferModel, classifier: Classifier, views: torch.Tensor
) -> None:
    with torch.no_grad():
        assert torch.equal(classifier.model(views), network(views))
        assert torch.equal(classifier.logits(views[:BATCH_SIZE]), network(views[:BATCH_SIZE]))


@pytest.mark.parametrize("count", range(1, 21))
def test_logits_do_not_depend_on_the_batch(classifier: Classifier, views: torch.Tensor, count: int) -> None:
    alone = torch.cat([classifier.logits(view[None]) for view in views])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(count))[:count]
    said = classifier.logits(views[order])
    assert said.dtype == torch.float32
    assert torch.equal(said, alone[order])


def test_top_is_a_softmax_the_likeliest_first(classifier: Classifier, views: torch.Tensor) -> None:
    wanted = classifier.logits(views).double().softmax(1)
    for row, numbers in zip(classifier.top_k(views, 2), wanted, strict=True):
        values, places = numbers.sort(descending=True)
        assert row == [(CLASSES[places[0]], values[0].item()), (CLASSES[places[1]], values[1].item())]
    assert len(classifier.top_k(views[:1], 99)[0]) == 3


def test_of_equal_classes_the_first_is_told_first(copied: Path, views: torch.Tensor) -> None:
    classifier = Classifier.load(copied, "cpu")
    with torch.no_grad():
        head = classifier.model.get_submodule("classifier.4")
        head.weight.zero_()  # type: ignore[union-attr, operator]
        head.bias.zero_()  # type: ignore[union-attr, operator]
    third = pytest.approx(1 / 3)
    assert classifier.top_k(views[:1], 3) == [[("blue", third), ("green", third), ("red", third)]]


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(48, 40), (40, 300), (20, 21), (32, 32)], ids=str)
def test_its_view_is_the_one_that_training_judges_on(interpolation: Any, size: tuple[int, int]) -> None:
    settings = AugmentConfig(resize=36, crop=32, interpolation=interpolation)
    picture = draw("red", 1, size)
    wanted = ViewTransform(settings, view_seed=0)(picture, "digest", EVALUATION_VIEW)
    given = evaluation_transform(resize=36, crop=32, interpolation=interpolation)(picture)
    assert given.shape == (3, 32, 32)
    assert given.dtype == torch.uint8
    assert torch.equal(given, wanted)


def test_the_processor_computes_no_half_precision() -> None:
    cpu = torch.device("cpu")
    assert supported_precision("fp16", cpu) == "no"
    assert supported_precision("no", cpu) == "no"
    assert supported_precision("bf16", cpu) in ("no", "bf16")
    assert supported_precision("fp16", torch.device("cuda")) == "fp16"


# What is in it


def test_a_model_tells_all_that_using_it_takes(packed: Path, network: TransferModel) -> None:
    import yaml

    about = json.loads((packed / "artifacts" / "classifier" / "model.json").read_text())
    assert about["classes"] == list(CLASSES)
    assert about["network"]["arch"] == "vgg11_bn"
    assert (about["transform"], about["precision"], about["epoch"]) == (USE["transform"], "no", 2)
    assert about["val"] == {"top1": 0.5}
    weights = packed / "artifacts" / "classifier" / "model.safetensors"
    assert about["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert load_file(weights).keys() == network.state_dict().keys()
    description = yaml.safe_load((packed / "MLmodel").read_text())
    signature = description["signature"]
    assert [each["name"] for each in json.loads(signature["inputs"])] == ["image"]
    assert [each["name"] for each in json.loads(signature["outputs"])] == ["top"]
    assert [(each["name"], each["default"]) for each in json.loads(signature["params"])] == [("top", 5)]
    assert description["saved_input_example_info"]["artifact_path"] == "input_example.json"
    wanted = (packed / "requirements.txt").read_text().split()
    assert {each.partition("==")[0] for each in wanted} == set(packaging.REQUIREMENTS)
    assert f"torch=={torch.__version__.partition('+')[0]}" in wanted


def test_its_code_imports_nothing_of_the_runner(packed: Path) -> None:
    files = [*(packed / "code").rglob("*.py"), *packed.glob("*.py")]
    assert {path.name for path in files} >= {
        "classifier.py",
        "network.py",
        "pixels.py",
        "view.py",
        "serve.py",
    }
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not [
                name for name in names if name.partition(".")[0] in ("runner", "pickle", "cloudpickle")
            ]


def test_no_file_of_it_is_a_pickle(packed: Path) -> None:
    for path in (each for each in packed.rglob("*") if each.is_file()):
        content = path.read_bytes()
        assert not content.startswith((b"\x80", b"PK\x03\x04")), path
        if path.suffix != ".safetensors":
            content.decode()
    assert not [path for path in packed.rglob("*") if path.suffix in (".pkl", ".pth", ".pt", ".bin", ".pyc")]


ALONE = """
import base64, builtins, json, os, pathlib, pickle, sys

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
example = json.loads((pathlib.Path(folder) / "input_example.json").read_text())
texts = [base64.b64encode(pathlib.Path(path).read_bytes()).decode() for path in images]
import pandas

table = pandas.DataFrame({"image": texts})
said = [model.predict(table), model.predict(table, params={"top": 1})]
try:
    said.append(model.predict(example))
except Exception as error:
    said.append(str(error))
from portable.classifier import Classifier
import torch

plain = Classifier.load(pathlib.Path(folder) / "artifacts" / "classifier", "cpu")
said.append(plain.top(torch.stack([plain.open(path) for path in images]), 9))
print(json.dumps([said, [name for name in sys.modules if name.partition(".")[0] == "runner"]]))
"""


@pytest.fixture(scope="module")
def told_alone(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Any, list[str]]:
    """Three pictures, what a process that cannot import the runner is told of them, and what it imported of it."""
    folder = tmp_path_factory.mktemp("alone")
    images = [folder / f"{label}.png" for label in CLASSES]
    for label, path in zip(CLASSES, images, strict=True):
        draw(label, 1).save(path)
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(packed), *map(str, images)],
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    said, imported = json.loads(done.stdout.splitlines()[-1])
    return images, said, imported


def test_mlflow_loads_it_where_there_is_no_runner(
    packed: Path, told_alone: tuple[list[Path], Any, list[str]]
) -> None:
    images, (whole, first, _, plain), imported = told_alone
    assert imported == []
    said = load_model(packed, device="cpu").predict(images, 9)
    wanted = [[(guess.name, guess.probability) for guess in each.top] for each in said]
    assert [[(guess["class"], guess["probability"]) for guess in row["top"]] for row in whole] == wanted
    assert [[(guess["class"], guess["probability"]) for guess in row["top"]] for row in first] == [
        row[:1] for row in wanted
    ]
    assert [[tuple(pair) for pair in row] for row in plain] == wanted


def test_it_takes_its_own_input_example(told_alone: tuple[list[Path], Any, list[str]]) -> None:
    _, (_, _, said, _), _ = told_alone
    assert [set(row) for row in said] == [{"top"}], said


def test_the_input_example_is_a_picture(packed: Path, views: torch.Tensor) -> None:
    (text,) = json.loads((packed / "input_example.json").read_text())["image"]
    with Image.open(io.BytesIO(b64decode(text, validate=True))) as picture:
        assert np.array_equal(np.asarray(picture), views[0].permute(1, 2, 0).numpy())


# What is refused


def edited(**changes: Any) -> Change:
    def change(copied: Path) -> None:
        about = json.loads((copied / "model.json").read_text())
        (copied / "model.json").write_text(json.dumps({**about, **changes}))

    return change


def inside(part: str, **changes: Any) -> Change:
    def change(copied: Path) -> None:
        about = json.loads((copied / "model.json").read_text())
        edited(**{part: {**about[part], **changes}})(copied)

    return change


def without(name: str) -> Change:
    def change(copied: Path) -> None:
        about = json.loads((copied / "model.json").read_text())
        del about[name]
        (copied / "model.json").write_text(json.dumps(about))

    return change


def tensors(change_one: Callable[[str, torch.Tensor], torch.Tensor]) -> Change:
    """Other weights, with their own right digest."""

    def change(copied: Path) -> None:
        path = copied / "model.safetensors"
        save_file(
            {name: change_one(name, value).contiguous() for name, value in load_file(path).items()}, path
        )
        edited(sha256=hashlib.sha256(path.read_bytes()).hexdigest())(copied)

    return change


def content(name: str, data: bytes) -> Change:
    def change(copied: Path) -> None:
        (copied / name).write_bytes(data)
        if name == "model.safetensors":
            edited(sha256=hashlib.sha256(data).hexdigest())(copied)

    return change


def as_folder(name: str) -> Change:
    def change(copied: Path) -> None:
        (copied / name).unlink()
        (copied / name).mkdir()

    return change


REFUSED = {
    "another vgg": inside("network", arch="vgg13"),
    "no vgg": inside("network", arch="mobilenet_v2", head="report"),
    "no network": inside("network", arch="nothing"),
    "a list of networks": inside("network", arch=["vgg11"]),
    "another head": inside("network", head="report"),
    "another pool": inside("network", pool=2),
    "another width": inside("network", width=8),
    "a width in words": inside("network", width="16"),
    "a vast width": inside("network", width=10**30),
    "too much dropout": inside("network", dropout=7),
    "no normalisation": inside("network", normalization={}),
    "a class less": edited(classes=["blue", "green"]),
    "a class more": edited(classes=[*CLASSES, "white"]),
    "no classes": edited(classes=[]),
    "classes null": edited(classes=None),
    "without classes": without("classes"),
    "without transform": without("transform"),
    "without digest": without("sha256"),
    "without format": without("format"),
    "network null": edited(network=None),
    "another format": edited(format="vgg-runner-model-2"),
    "another digest": edited(sha256="0" * 64),
    "unknown interpolation": inside("transform", interpolation="spline"),
    "unknown transform": inside("transform", rotate=3),
    "empty description": content("model.json", b""),
    "description null": content("model.json", b"null"),
    "description in latin": content("model.json", b'{"format": "\xff"}'),
    "deep description": content("model.json", b"[" * 100_000),
    "empty weights": content("model.safetensors", b""),
    "pickled weights": content("model.safetensors", pickle.dumps({"x": 1})),
    "whole numbers": tensors(lambda _, value: value.to(torch.int32)),
    "no weights": lambda copied: (copied / "model.safetensors").unlink(),
    "no description": lambda copied: (copied / "model.json").unlink(),
}
ODD = {
    "a negative pool": inside("network", pool=-1),
    "classes swapped": edited(classes=["red", "green", "blue"]),
    "classes a word": edited(classes="abc"),
    "classes numbers": edited(classes=[1, 2, 3]),
    "a class twice": edited(classes=["blue", "blue", "red"]),
    "no size": inside("transform", resize=0),
    "a size in words": inside("transform", resize="36"),
    "a negative crop": inside("transform", crop=-2),
    "a crop too small": inside("transform", crop=10),
    "unknown precision": edited(precision="fp8"),
    "half precision": tensors(lambda _, value: value.half() if value.is_floating_point() else value),
    "a head in double": tensors(lambda name, value: value.double() if "classifier" in name else value),
    "no numbers": tensors(lambda name, value: value * float("nan") if "classifier" in name else value),
    "description a folder": as_folder("model.json"),
    "weights a folder": as_folder("model.safetensors"),
}


@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(change, id=name) for name, change in REFUSED.items()),
        *(pytest.param(change, id=name) for name, change in ODD.items()),
    ],
)
def test_a_model_that_is_not_whole_is_refused_when_it_is_opened(copied: Path, change: Change) -> None:
    change(copied)
    with pytest.raises(ModelError) as failure:
        Classifier.load(copied, "cpu")
    sentence = str(failure.value)
    assert str(copied) in sentence
    assert "\n" not in sentence
    if (copied / "model.json").exists():
        with pytest.raises(UserError) as refusal:
            load_model(copied, device="cpu")
        assert str(refusal.value) == sentence


def test_a_flipped_bit_anywhere_is_found(copied: Path) -> None:
    path = copied / "model.safetensors"
    whole = path.read_bytes()
    for place in (9, 200, len(whole) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="digest differs"):
            Classifier.load(copied, "cpu")


def test_what_it_says_of_a_file_needs_no_runner_either(classifier: Classifier, tmp_path: Path) -> None:
    draw("red", 1).save(tmp_path / "red.png")
    with (tmp_path / "red.png").open("rb") as file:
        assert torch.equal(classifier.load_image(file), classifier.load_image(tmp_path / "red.png"))
    with pytest.raises(OSError, match="cannot identify"):
        classifier.load_image(Path(__file__))
