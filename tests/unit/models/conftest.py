"""Weights of the models under test."""

from __future__ import annotations

import pytest
from torch import Tensor
from vgg_weights import drawn_weights


@pytest.fixture(scope="package")
def features11() -> dict[str, Tensor]:
    """Weights of vgg11 without a classifier."""
    return drawn_weights("vgg11", classifier=False)
