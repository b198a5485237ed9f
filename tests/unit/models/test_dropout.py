"""Dropout masks are functions of training seed, step and layer, whichever process computes a part of them."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import small_model
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from runner.models import dropout as dropout_module
from runner.models.dropout import KeyedDropout, set_dropout_batch


def dropout(p: float = 0.4, layer: str = "classifier.2", seed: int = 0) -> KeyedDropout:
    return KeyedDropout(p, layer, seed).train()


def mask(layer: KeyedDropout, step: int = 0, samples: slice = slice(0, 12), batch_size: int = 12) -> Tensor:
    """The output for an input of ones: 50 values per sample."""
    layer.set_batch(step, samples, batch_size)
    return layer(torch.ones(samples.stop - samples.start, 50))


def test_is_a_function_of_seed_step_and_layer() -> None:
    torch.manual_seed(1)
    first = mask(dropout(), 3)
    torch.manual_seed(2)
    assert torch.equal(mask(dropout(), 3), first)
    assert not torch.equal(mask(dropout(), 4), first)
    assert not torch.equal(mask(dropout(seed=1), 3), first)
    assert not torch.equal(mask(dropout(layer="classifier.5"), 3), first)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 12), st.integers(0, 12))
def test_a_part_of_the_batch_gets_its_part_of_the_mask(start: int, stop: int) -> None:
    start, stop = sorted((start, stop))
    assert torch.equal(mask(dropout(), samples=slice(start, stop)), mask(dropout())[start:stop])


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drops_a_share_p_and_scales_the_rest(p: float) -> None:
    values = mask(dropout(p), samples=slice(0, 400), batch_size=400)
    left = values[values != 0]
    assert len(left) / values.numel() == pytest.approx(1 - p, abs=0.02)
    assert torch.allclose(left, torch.tensor(1 / (1 - p)))


def test_the_gradient_is_scaled_by_the_same_mask() -> None:
    layer = dropout()
    layer.set_batch(0, slice(0, 4), 4)
    values = torch.ones(4, 50, requires_grad=True)
    output = layer(values)
    output.sum().backward()
    assert torch.equal(values.grad, output.detach())


def test_does_nothing_in_evaluation_mode_and_at_zero() -> None:
    values = torch.rand(3, 5)
    assert torch.equal(dropout().eval()(values), values)
    assert torch.equal(dropout(0.0)(values), values)


def test_samples_that_were_not_announced_are_refused() -> None:
    layer = dropout()
    layer.set_batch(0, slice(0, 4), 8)
    with pytest.raises(RuntimeError, match="got 5 samples"):
        layer(torch.ones(5, 2))


def test_every_dropout_layer_of_a_model_has_its_own_masks() -> None:
    model = small_model(3, head="classifier", random_weights=False)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Dropout)]
    assert all(isinstance(layer, KeyedDropout) and layer.training_seed == 3 for layer in layers)
    assert [layer.layer for layer in layers] == ["classifier.2", "classifier.5", "classifier.6.2"]  # type: ignore[union-attr]
    set_dropout_batch(model.modules(), 7, slice(1, 3), 4)
    assert [(layer.step, layer.samples, layer.batch_size) for layer in layers] == [(7, slice(1, 3), 4)] * 3  # type: ignore[union-attr]


def test_masks_that_were_drawn_ahead_are_those_of_their_step() -> None:
    """Also where the last batch of an epoch is smaller, steps are repeated, and a batch comes in parts."""
    layer = dropout()
    for step, samples, size in [
        (0, slice(0, 6), 6),
        (1, slice(0, 2), 6),
        (1, slice(2, 6), 6),
        (2, slice(0, 4), 4),
    ] * 2:
        assert torch.equal(mask(layer, step, samples, size), mask(dropout(), step, samples, size)), (
            step,
            samples,
        )
    assert torch.equal(mask(copy.deepcopy(layer)), mask(layer))


def test_remembered_masks_are_the_drawn_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [mask(dropout(), step, batch_size=size) for step in range(4) for size in (12, 13)]
    monkeypatch.setattr(dropout_module, "_drawn", None)
    dropout_module.remember_masks()
    for _ in range(2):
        again = [mask(dropout(), step, batch_size=size) for step in range(4) for size in (12, 13)]
        assert all(map(torch.equal, drawn, again))
    assert dropout_module._drawn is not None
    assert len(dropout_module._drawn.bits) >= 8  # and with a second core those of the steps that would follow
    monkeypatch.setattr(torch, "rand", None)
    assert torch.equal(mask(dropout(), 3), drawn[6])


def test_remembered_masks_take_limited_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropout_module, "_drawn", None)
    monkeypatch.setattr(dropout_module, "MOST_DRAWN", 200)  # a mask takes 75 bytes
    dropout_module.remember_masks()
    drawn = [mask(dropout(), step) for step in range(5)]
    assert dropout_module._drawn is not None
    assert dropout_module._drawn.bytes <= 200
    assert all(torch.equal(mask(dropout(), step), drawn[step]) for step in range(5))
