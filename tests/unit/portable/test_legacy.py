"""Models that were logged in format 1 keep working."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pictures import draw
from torch import Tensor

from runner import load_model
from runner.portable.classifier import FORMAT, Classifier, ModelError
from runner.portable.legacy import FORMAT_1, FORMAT_2, upgraded

Write = Callable[[Path, dict[str, Any], dict[str, Tensor]], Path]


def in_format_1(description: dict[str, Any]) -> dict[str, Any]:
    """A description as it was written before format 2."""
    old = {
        name: value
        for name, value in description.items()
        if name not in ("model", "digest", "sha256", "frozen_sha256")
    }
    architecture = dict(description["model"])
    architecture["normalisation"] = architecture.pop("normalization")
    architecture["head"] = {"classifier": "report", "pooled": "pooled"}[architecture["head"]]
    return {**old, "format": "vgg-runner-model-1", "network": architecture}


def old_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("normalize.", "normalise."): value for name, value in tensors.items()}


def test_a_model_of_format_1_computes_the_same_logits(
    classifier: Classifier, tensors: dict[str, Tensor], images: Tensor, write: Write, tmp_path: Path
) -> None:
    old = old_names(tensors)
    assert {"normalise.mean", "normalise.std"} < old.keys()
    folder = write(tmp_path / "old", in_format_1(classifier.description), old)
    loaded = Classifier.load(folder, "cpu")
    assert torch.equal(loaded.logits(images), classifier.logits(images))
    assert loaded.top_k(images, 3) == classifier.top_k(images, 3)
    assert (loaded.classes, loaded.description["epoch"]) == (classifier.classes, 2)
    assert loaded.description["format"] == FORMAT
    assert loaded.description["model"] == classifier.description["model"]


def test_a_model_of_format_2_has_all_tensors_in_one_file(
    classifier: Classifier, tensors: dict[str, Tensor], images: Tensor, write: Write, tmp_path: Path
) -> None:
    description = {name: value for name, value in classifier.description.items() if "sha256" not in name}
    folder = write(tmp_path / "old", {**description, "format": FORMAT_2}, tensors)
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.safetensors"]
    assert torch.equal(Classifier.load(folder, "cpu").logits(images), classifier.logits(images))


def test_load_model_takes_both_formats(
    folder: Path, classifier: Classifier, tensors: dict[str, Tensor], write: Write, tmp_path: Path
) -> None:
    old = write(tmp_path / "old", in_format_1(classifier.description), old_names(tensors))
    draw("red", 1).save(tmp_path / "red.png")
    predictions = [
        load_model(path, device="cpu").predict([tmp_path / "red.png"], 3) for path in (folder, old)
    ]
    assert predictions[0] == predictions[1]
    assert len(predictions[0][0].top) == 3


@pytest.mark.parametrize("head", ["classifier", "pooled"])
def test_descriptions_and_tensors_take_the_new_names(classifier: Classifier, head: str) -> None:
    new = {**classifier.description, "model": {**classifier.description["model"], "head": head}}
    old = in_format_1(new)
    tensor = torch.zeros(1)
    description, tensors = upgraded(old, {"normalise.mean": tensor, "classifier.6.0.weight": tensor})
    assert old["format"] == FORMAT_1
    assert description == {
        name: value for name, value in new.items() if name not in ("digest", "sha256", "frozen_sha256")
    }
    assert tensors.keys() == {"normalize.mean", "classifier.6.0.weight"}


def test_the_current_format_is_not_changed(classifier: Classifier, tensors: dict[str, Tensor]) -> None:
    description, state = upgraded(classifier.description, tensors)
    assert description is classifier.description
    assert state is tensors


@pytest.mark.parametrize(
    "change",
    [
        {"network": None},
        {"network": {}},
        {"network": {"normalisation": {}}},
        {"network": [1, 2]},
        {"network": 3},
    ],
    ids=str,
)
def test_a_damaged_description_of_format_1_is_refused(
    classifier: Classifier, tensors: dict[str, Tensor], change: Any, write: Write, tmp_path: Path
) -> None:
    folder = write(tmp_path / "old", {**in_format_1(classifier.description), **change}, old_names(tensors))
    with pytest.raises(ModelError, match="holds no model of this version"):
        Classifier.load(folder, "cpu")
