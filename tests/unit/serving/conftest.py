"""A loaded model at random weights, and image files."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import small_network

from runner.serving import packaging
from runner.serving.predictor import LoadedModel


@pytest.fixture(scope="package")
def model() -> LoadedModel:
    """A classifier of blue, green and red images of 32 × 32 pixels that has learned nothing."""
    module = small_network().eval()
    inference = {
        "name": "small",
        "transform": {"resize": 36, "crop": 32, "interpolation": "bilinear"},
        "precision": "no",
    }
    classifier = packaging.to_classifier(
        module, packaging.describe(module, inference, epoch=1, val={}), "cpu"
    )
    return LoadedModel(classifier, "a test model")


@pytest.fixture(scope="package")
def files(images: Path) -> list[Path]:
    """Twenty image files, no two alike."""
    return sorted(images.rglob("*.png"))[:20]
