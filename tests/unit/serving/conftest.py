"""A loaded model at random weights, and image files."""

from __future__ import annotations

from pathlib import Path

import pytest
from loaded import loaded_model

from runner.serving.predictor import LoadedModel


@pytest.fixture(scope="package")
def model() -> LoadedModel:
    return loaded_model()


@pytest.fixture(scope="package")
def files(images: Path) -> list[Path]:
    """Twenty image files, no two alike."""
    return sorted(images.rglob("*.png"))[:20]
