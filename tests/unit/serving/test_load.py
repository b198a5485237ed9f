"""Loading models from folders and checkpoints, and which ones are refused."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_model
from loaded import INFERENCE
from safetensors.torch import save_file

from runner import load_model
from runner.models import checkpoint
from runner.models.transfer_model import TransferModel
from runner.portable.classifier import FORMAT, description_digest
from runner.serving import packaging
from runner.utils.errors import UserError


@pytest.fixture(scope="module")
def trained() -> TransferModel:
    return small_model().eval()


@pytest.fixture
def checkpoints(trained: TransferModel, tmp_path: Path) -> Path:
    """A folder with best.safetensors and frozen.safetensors, as a run leaves it."""
    save_checkpoint(trained, tmp_path, INFERENCE)
    return tmp_path


def save_checkpoint(model: TransferModel, folder: Path, inference: dict[str, Any]) -> None:
    checkpoint.save_frozen(model, folder)
    frozen = checkpoint.frozen_digest(model)
    checkpoint.save(model, folder / "best.safetensors", 2, {"top1": 0.5}, frozen, inference)


def test_a_checkpoint_computes_what_the_trained_model_did(trained: TransferModel, checkpoints: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    for reference in (checkpoints, checkpoints / "best.safetensors"):
        loaded = load_model(reference, device="cpu")
        with torch.no_grad():
            assert torch.equal(loaded.module(images), trained(images))
        assert loaded.source == f"checkpoint {checkpoints / 'best.safetensors'}, epoch 2"


def test_a_checkpoint_needs_its_own_frozen_file(trained: TransferModel, checkpoints: Path) -> None:
    frozen = checkpoints / checkpoint.FROZEN_FILE
    frozen.unlink()
    with pytest.raises(UserError) as refusal:
        load_model(checkpoints, device="cpu")
    assert str(refusal.value).startswith(f"There is no {frozen}")
    other = small_model().eval()
    other.get_parameter("features.0.bias").data[0] += 1e-3
    checkpoint.save_frozen(other, checkpoints)
    with pytest.raises(UserError) as refusal:
        load_model(checkpoints, device="cpu")
    assert str(frozen) in str(refusal.value)
    assert "best.safetensors" in str(refusal.value)


def test_the_frozen_file_is_not_a_model(checkpoints: Path) -> None:
    with pytest.raises(UserError, match="is not a checkpoint of this version"):
        load_model(checkpoints / checkpoint.FROZEN_FILE, device="cpu")


@pytest.mark.parametrize("inference", [{}, {"name": "small"}])
def test_a_checkpoint_without_its_transform_is_refused(
    trained: TransferModel, tmp_path: Path, inference: dict[str, Any]
) -> None:
    save_checkpoint(trained, tmp_path, inference)
    with pytest.raises(UserError, match="did not store the transform"):
        load_model(tmp_path, device="cpu")


@pytest.mark.parametrize("description", [{"format": "other"}, {"format": FORMAT, "classes": []}, []], ids=str)
def test_an_unusable_model_folder_is_refused_in_one_sentence(tmp_path: Path, description: Any) -> None:
    if isinstance(description, dict):
        description["digest"] = description_digest(description)
    (tmp_path / "model.json").write_text(json.dumps(description))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as refusal:
        load_model(tmp_path, device="cpu")
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


class Payload:
    """Pickled code that makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.trace),))


@pytest.mark.parametrize("name", ["best.pth", "best.pt", "best.safetensors", "model.pkl"])
def test_pickled_code_is_not_run(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    (tmp_path / name).write_bytes(pickle.dumps(Payload(trace)))
    message = "is damaged" if name == "best.safetensors" else "Pickled files are not opened"
    with pytest.raises(UserError, match=message):
        load_model(str(tmp_path / name), device="cpu")
    assert not trace.exists()


@pytest.mark.parametrize("head", ["classifier", "pooled"])
@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_a_packaged_classifier_computes_what_the_trained_model_did(arch: str, head: str) -> None:
    model = small_model(arch=arch, head=head).eval()
    classifier = packaging.to_classifier(model, packaging.describe(model, INFERENCE, epoch=1, val={}), "cpu")
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(classifier.model(images), model(images))


def test_a_packaged_classifier_is_a_copy() -> None:
    model = small_model().eval()
    classifier = packaging.to_classifier(model, packaging.describe(model, INFERENCE, epoch=1, val={}), "cpu")
    before = classifier.model.state_dict()["classifier.1.weight"].clone()
    with torch.no_grad():
        model.get_parameter("classifier.1.weight").zero_()
    assert torch.equal(classifier.model.state_dict()["classifier.1.weight"], before)


def test_importing_the_package_does_not_import_torch_or_mlflow() -> None:
    code = "import runner, sys; print('torch' in sys.modules, 'mlflow' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
