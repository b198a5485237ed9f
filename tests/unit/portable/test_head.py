"""The layers of a linear head."""

from __future__ import annotations

import pytest
import torch
from helpers import small_model

from runner.portable.head import LevelNorm, PyramidPool, SignedPower, bins


def test_a_pyramid_has_the_pools_of_its_levels() -> None:
    maps = torch.randn(2, 5, 7, 7)
    pooled = PyramidPool([1, 3])(maps)
    assert pooled.shape == (2, 5 * bins([1, 3]), 1, 1)
    assert torch.allclose(pooled[:, :5, 0, 0], maps.mean((2, 3)), atol=1e-6)
    assert torch.equal(pooled[:, 5:, 0, 0], torch.nn.AdaptiveAvgPool2d(3)(maps).flatten(1))


def test_the_signed_power_keeps_signs_and_has_a_finite_derivative() -> None:
    values = torch.tensor([-4.0, 0.0, 9.0], requires_grad=True)
    roots = SignedPower(0.5)(values)
    assert roots.tolist() == pytest.approx([-2, 0, 3], abs=0.005)
    roots.sum().backward()
    assert values.grad is not None
    assert torch.isfinite(values.grad).all()


def test_each_level_has_a_norm_of_one() -> None:
    normed = LevelNorm([3, 4])(torch.randn(5, 7))
    assert torch.allclose(normed[:, :3].norm(dim=1), torch.ones(5))
    assert torch.allclose(normed[:, 3:].norm(dim=1), torch.ones(5))
    assert torch.equal(LevelNorm([2])(torch.zeros(1, 2)), torch.zeros(1, 2))


def test_a_linear_head_trains_its_last_layer_alone() -> None:
    model = small_model(head="linear", pool=(1, 2), power=0.5, norm="l2")
    assert model.layer_names[-4:] == ["flatten", "classifier.0", "classifier.1", "classifier.2"]
    assert [*model.trainable_state()] == ["classifier.2.weight", "classifier.2.bias"]
    assert model.trainable_state()["classifier.2.weight"].shape == (3, 512 * 5)
    assert model.split_layer == "flatten"
