"""A loaded classifier: what it computes, and which folders it refuses."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import draw
from safetensors.torch import load_file, save_file
from torch import Tensor

import runner.portable
from runner import load_model
from runner.portable.classifier import BATCH_SIZE, Classifier, ModelError, description_digest
from runner.utils.errors import UserError

CLASSES = ("blue", "green", "red")
Change = Callable[[Path], Any]


# What it computes


def test_logits_are_those_of_the_model(classifier: Classifier, images: Tensor) -> None:
    with torch.no_grad():
        assert torch.equal(
            classifier.logits(images[:BATCH_SIZE]), classifier.model(images[:BATCH_SIZE]).float()
        )


@pytest.mark.parametrize("count", range(1, 21))
def test_logits_do_not_depend_on_the_batch(classifier: Classifier, images: Tensor, count: int) -> None:
    alone = torch.cat([classifier.logits(image[None]) for image in images])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(count))[:count]
    together = classifier.logits(images[order])
    assert together.dtype == torch.float32
    assert torch.equal(together, alone[order])


def test_top_k_is_a_softmax_with_the_most_likely_class_first(classifier: Classifier, images: Tensor) -> None:
    probabilities = classifier.logits(images).double().softmax(1)
    for row, expected in zip(classifier.top_k(images, 2), probabilities, strict=True):
        values, classes = expected.sort(descending=True)
        assert row == [(CLASSES[classes[0]], values[0].item()), (CLASSES[classes[1]], values[1].item())]
    assert len(classifier.top_k(images[:1], 99)[0]) == 3


def test_equally_likely_classes_keep_their_order(folder: Path, images: Tensor) -> None:
    classifier = Classifier.load(folder, "cpu")
    with torch.no_grad():
        head = classifier.model.get_submodule("classifier.4")
        head.weight.zero_()  # type: ignore[union-attr, operator]
        head.bias.zero_()  # type: ignore[union-attr, operator]
    third = pytest.approx(1 / 3)
    assert classifier.top_k(images[:1], 3) == [[("blue", third), ("green", third), ("red", third)]]


def test_an_image_is_loaded_from_a_path_or_an_open_file(classifier: Classifier, tmp_path: Path) -> None:
    draw("red", 1).save(tmp_path / "red.png")
    with (tmp_path / "red.png").open("rb") as file:
        assert torch.equal(classifier.load_image(file), classifier.load_image(tmp_path / "red.png"))
    with pytest.raises(OSError, match="cannot identify"):
        classifier.load_image(Path(__file__))


# What is refused


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of model.json and renew its digest; `...` removes an entry."""
    path = folder / "model.json"
    description = {**json.loads(path.read_text()), **changes}
    description = {name: value for name, value in description.items() if value is not ...}
    description["digest"] = description_digest(description)
    path.write_text(json.dumps(description))


def edited(**changes: Any) -> Change:
    return lambda folder: edit(folder, **changes)


def inside(part: str, **changes: Any) -> Change:
    """Change entries of one part of model.json."""

    def change(folder: Path) -> None:
        edit(folder, **{part: {**json.loads((folder / "model.json").read_text())[part], **changes}})

    return change


def weights(change_one: Callable[[str, Tensor], Tensor]) -> Change:
    """Other weights, with their own correct digest."""

    def change(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(
            {name: change_one(name, value).contiguous() for name, value in load_file(path).items()}, path
        )
        edit(folder, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    return change


def content(name: str, data: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(data)
        if name == "model.safetensors":
            edit(folder, sha256=hashlib.sha256(data).hexdigest())

    return change


def as_folder(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def undigested(folder: Path) -> None:
    """Swap two classes without renewing the digest."""
    path = folder / "model.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "classes": ["red", "green", "blue"]}))


REFUSED: dict[str, Change] = {
    "another vgg": inside("model", arch="vgg13"),
    "not a vgg": inside("model", arch="mobilenet_v2", head="classifier"),
    "unknown model": inside("model", arch="nothing"),
    "list of models": inside("model", arch=["vgg11"]),
    "another head": inside("model", head="classifier"),
    "another pool": inside("model", pool=2),
    "negative pool": inside("model", pool=-1),
    "another width": inside("model", width=8),
    "width as text": inside("model", width="16"),
    "vast width": inside("model", width=10**30),
    "too much dropout": inside("model", dropout=7),
    "no normalization": inside("model", normalization={}),
    "one class less": edited(classes=["blue", "green"]),
    "one class more": edited(classes=[*CLASSES, "white"]),
    "no classes": edited(classes=[]),
    "classes null": edited(classes=None),
    "classes missing": edited(classes=...),
    "classes as text": edited(classes="abc"),
    "classes as numbers": edited(classes=[1, 2, 3]),
    "a class twice": edited(classes=["blue", "blue", "red"]),
    "classes swapped": undigested,
    "transform missing": edited(transform=...),
    "unknown interpolation": inside("transform", interpolation="spline"),
    "unknown transform": inside("transform", rotate=3),
    "size zero": inside("transform", resize=0),
    "size as text": inside("transform", resize="36"),
    "negative crop": inside("transform", crop=-2),
    "crop too small": inside("transform", crop=10),
    "digest missing": edited(sha256=...),
    "another digest": edited(sha256="0" * 64),
    "format missing": edited(format=...),
    "another format": edited(format="vgg-runner-model-4"),
    "model null": edited(model=None),
    "empty description": content("model.json", b""),
    "description null": content("model.json", b"null"),
    "description in latin-1": content("model.json", b'{"format": "\xff"}'),
    "deep description": content("model.json", b"[" * 100_000),
    "description is a folder": as_folder("model.json"),
    "no description": lambda folder: (folder / "model.json").unlink(),
    "empty weights": content("model.safetensors", b""),
    "pickled weights": content("model.safetensors", pickle.dumps({"x": 1})),
    "integers": weights(lambda _, value: value.to(torch.int32)),
    "half precision": weights(lambda _, value: value.half() if value.is_floating_point() else value),
    "head in double precision": weights(
        lambda name, value: value.double() if "classifier" in name else value
    ),
    "not a number": weights(lambda name, value: value * float("nan") if "classifier" in name else value),
    "weights are a folder": as_folder("model.safetensors"),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no frozen weights": lambda folder: (folder / "frozen.safetensors").unlink(),
    "frozen weights are a folder": as_folder("frozen.safetensors"),
    "other frozen weights": content("frozen.safetensors", b""),
    "frozen digest missing": edited(frozen_sha256=...),
    "frozen digest null": edited(frozen_sha256=None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_folder_without_a_complete_model_is_refused_in_one_sentence(folder: Path, name: str) -> None:
    REFUSED[name](folder)
    with pytest.raises(ModelError) as refused:
        Classifier.load(folder, "cpu")
    assert str(folder) in str(refused.value)
    assert "\n" not in str(refused.value)
    if (folder / "model.json").exists():
        with pytest.raises(UserError) as error:
            load_model(folder, device="cpu")
        assert str(error.value) == str(refused.value)


@pytest.mark.parametrize("file", ["model", "frozen"])
def test_a_flipped_bit_anywhere_is_detected(folder: Path, file: str) -> None:
    path = folder / f"{file}.safetensors"
    undamaged = path.read_bytes()
    for position in (9, 200, len(undamaged) // 2, len(undamaged) - 1):
        damaged = bytearray(undamaged)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(ModelError, match="digest differs"):
            Classifier.load(folder, "cpu")


def test_the_package_imports_nothing_of_the_runner() -> None:
    """Every logged model carries it."""
    (root,) = runner.portable.__path__
    files = [*Path(root).rglob("*.py")]
    assert {path.name for path in files} >= {"classifier.py", "model.py", "images.py", "serve.py"}
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= len(path.relative_to(root).parts), path
                names = [node.module or ""]
            packages = {name.partition(".")[0] for name in names}
            assert not packages & {"runner", "pickle", "cloudpickle"}, path
