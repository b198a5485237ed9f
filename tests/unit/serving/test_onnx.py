"""ONNX export: the file computes what the model does, and a file that disagrees is noticed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from runner.serving import onnx
from runner.serving.predictor import LoadedModel

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def exported(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    onnx.export_onnx(model, path)
    return path


def test_the_file_computes_what_the_model_does(exported: Path, model: LoadedModel, files: list[Path]) -> None:
    session = onnxruntime.InferenceSession(str(exported))
    for count in (1, 3):
        images = torch.stack([model.classifier.load_image(path) for path in files[:count]])
        (logits,) = session.run(None, {"images": images.numpy()})
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, model.classifier.logits(images), atol=1e-4)
    assert onnx.compare_onnx(model, exported) <= onnx.TOLERANCE


def test_the_metadata_has_classes_and_transform(exported: Path, model: LoadedModel) -> None:
    metadata = onnxruntime.InferenceSession(str(exported)).get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == list(model.classes)
    assert json.loads(metadata["transform"]) == {"resize": 36, "crop": 32, "interpolation": "bilinear"}


def test_a_file_that_disagrees_is_noticed(exported: Path, model: LoadedModel) -> None:
    bias = model.module.get_parameter("classifier.4.bias")
    with torch.no_grad():
        bias[1] += 1
        try:
            with pytest.raises(RuntimeError, match="disagrees"):
                onnx.compare_onnx(model, exported)
        finally:
            bias[1] -= 1
