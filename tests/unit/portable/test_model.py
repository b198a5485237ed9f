"""Precision on the CPU, and the evaluation transform that goes with a model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pictures import draw

from runner.config.augment_schema import AugmentConfig
from runner.data.transforms import EVALUATION_VIEW, ViewTransform
from runner.portable.model import supported_precision
from runner.portable.transform import evaluation_transform


def test_the_cpu_computes_in_no_half_precision_that_is_slow() -> None:
    cpu = torch.device("cpu")
    assert supported_precision("fp16", cpu) == "no"
    assert supported_precision("no", cpu) == "no"
    assert supported_precision("bf16", cpu) in ("no", "bf16")
    assert supported_precision("fp16", torch.device("cuda")) == "fp16"


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(48, 40), (40, 300), (20, 21), (32, 32)], ids=str)
def test_inference_uses_the_transform_of_training_evaluations(
    interpolation: Any, size: tuple[int, int]
) -> None:
    settings = AugmentConfig(resize=36, crop=32, interpolation=interpolation)
    picture = draw("red", 1, size)
    expected = ViewTransform(settings, seed=0)(picture, "digest", EVALUATION_VIEW)
    transformed = evaluation_transform(resize=36, crop=32, interpolation=interpolation)(picture)
    assert transformed.shape == (3, 32, 32)
    assert transformed.dtype == torch.uint8
    assert torch.equal(transformed, expected)
