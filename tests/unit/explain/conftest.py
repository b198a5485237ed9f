"""A model whose maps are tested."""

from __future__ import annotations

import pytest
from helpers import small_model

from runner.models.transfer_model import TransferModel


@pytest.fixture(scope="module")
def model() -> TransferModel:
    """vgg11 with all layers trainable, in evaluation mode: no test may change it."""
    return small_model(trainable="all", pool=2).eval()
