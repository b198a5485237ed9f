"""Activation checkpointing: the same gradients and statistics to the last bit, and less memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import random_images, small_model
from torch import Tensor

from runner.models import transfer_model
from runner.models.dropout import set_dropout_batch
from runner.models.transfer_model import TransferModel

NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {"arch": "vgg11", "trainable": "all"},
    "batch norm": {"arch": "vgg11_bn", "trainable": "last:3"},
    "residual": {"arch": "resnet18", "trainable": "last:3"},
    "drop path": {"arch": "convnext_tiny", "trainable": "last:4", "drop_path": 0.5},
    "classifier": {"arch": "vgg11", "trainable": "all", "head": "classifier", "input_size": 224},
}


def train_step(model: TransferModel, images: Tensor) -> tuple[dict[str, Tensor], int]:
    """Gradients and buffers after a step, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(values: Tensor) -> Tensor:
        kept[values.untyped_storage().data_ptr()] = values.untyped_storage().nbytes()
        return values

    model.train()
    start = model.split_index
    with torch.no_grad():
        features = model.run(images, 0, start)
    for step in range(2):  # a second one, whose masks are others
        set_dropout_batch(model.modules(), step, slice(0, len(images)), len(images))
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
            loss = model(features, start=start).square().sum()
        loss.backward()
    gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    weights = {each.untyped_storage().data_ptr() for each in model.parameters()}
    size = sum(size for place, size in kept.items() if place not in weights)
    return gradients | dict(model.named_buffers()), size


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_statistics_are_the_same(name: str) -> None:
    results = {}
    fields = {"input_size": 32, **NETWORKS[name]}
    for recomputes in (False, True):
        model = small_model(**fields)
        model.recomputes = recomputes
        results[recomputes] = train_step(model, random_images(6, fields["input_size"]))
    (usual, usual_bytes), (again, again_bytes) = results[False], results[True]
    assert usual.keys() == again.keys()
    for tensor, value in usual.items():
        assert torch.equal(value, again[tensor]), tensor
    assert again_bytes < 0.7 * usual_bytes


def test_evaluation_recomputes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model(trainable="all"), random_images()
    expected = model.eval()(images)
    model.recomputes = True
    monkeypatch.setattr(transfer_model, "recomputed", None)  # a call fails
    assert torch.equal(model(images), expected)
    set_dropout_batch(model.modules(), 0, slice(0, len(images)), len(images))
    with pytest.raises(TypeError):
        model.train()(images)
