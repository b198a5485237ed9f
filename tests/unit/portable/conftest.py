"""A small model in the two files that every logged model carries."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

from runner.portable.classifier import FORMAT, Classifier, description_digest
from runner.portable.head import HeadSpec, build_head
from runner.portable.model import LayeredModel, build_backbone

CLASSES = ("blue", "green", "red")
NORMALIZATION = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.2, 0.3]}
ARCHITECTURE = {
    "arch": "vgg11_bn",
    "head": "pooled",
    "pool": 1,
    "width": 16,
    "dropout": 0.4,
    "normalization": NORMALIZATION,
}
DESCRIPTION = {
    "format": FORMAT,
    "name": "small",
    "transform": {"resize": 36, "crop": 32, "interpolation": "bilinear"},
    "precision": "no",
    "model": ARCHITECTURE,
    "classes": list(CLASSES),
    "epoch": 2,
}


@pytest.fixture(autouse=True, scope="module")
def narrow_vgg() -> Iterator[None]:
    """vgg11 with few channels: a model of 100,000 weights instead of nine million.

    By module: without __init__.py files, pytest ends fixtures of a package only with the session.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(torchvision.models.vgg.cfgs, "A", [4, "M", 4, "M", 8, 8, "M", 8, 8, "M", 8, 512, "M"])
        yield


@pytest.fixture(scope="module")
def tensors(narrow_vgg: None) -> dict[str, Tensor]:
    """Random weights, and batch-norm statistics that are not the initial ones."""
    backbone = build_backbone("vgg11_bn", "pooled", 1)
    head = build_head(HeadSpec("pooled", 1, 16, 0.4), [backbone.num_features], len(CLASSES))
    model = LayeredModel(backbone, head, *NORMALIZATION.values())
    generator = torch.Generator().manual_seed(3)

    def draw(name: str, value: Tensor) -> Tensor:
        if value.dtype != torch.float32:  # the number of batches that a batch norm has seen
            return torch.tensor(7, dtype=value.dtype)
        if name.startswith("normalize."):
            return value.clone()
        numbers = torch.randn(value.shape, generator=generator)
        return numbers.abs() + 0.5 if name.endswith("running_var") else numbers * 0.1

    return {name: draw(name, value) for name, value in model.state_dict().items()}


@pytest.fixture
def folder(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    """A folder with the model's three files."""
    return write_model(tmp_path / "model", DESCRIPTION, tensors)


@pytest.fixture(scope="module")
def classifier(tensors: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    folder = write_model(tmp_path_factory.mktemp("classifier") / "model", DESCRIPTION, tensors)
    loaded = Classifier.load(folder, "cpu")
    shutil.rmtree(folder)
    return loaded


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Twenty transformed images."""
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def write() -> Any:
    return write_model


def write_model(folder: Path, description: dict[str, Any], tensors: dict[str, Tensor]) -> Path:
    """Write model.json, and the tensors with their digests: earlier formats have all of them in model.safetensors."""
    folder.mkdir()
    frozen = {name for name in tensors if name.startswith("features.") and description["format"] == FORMAT}
    described = {**description}
    for file, key in (("frozen", "frozen_sha256"), ("model", "sha256")):
        if chosen := {
            name: tensors[name].contiguous() for name in tensors if (name in frozen) == (file == "frozen")
        }:
            save_file(chosen, folder / f"{file}.safetensors")
            described[key] = hashlib.sha256((folder / f"{file}.safetensors").read_bytes()).hexdigest()
    described["digest"] = description_digest(described)
    (folder / "model.json").write_text(json.dumps(described))
    return folder
