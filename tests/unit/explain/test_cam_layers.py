"""Class activation maps: the model stays unchanged by them, and the layers that have them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explained import QUICK, images
from helpers import CLASSES, NUMBERS, small_model
from torch import nn

from runner.explain import cam
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.utils.errors import UserError


def state(model: TransferModel) -> dict[str, Any]:
    """Everything that explaining might change in a model and in the random generators."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": {name: module.training for name, module in model.named_modules()},
        "modules": [id(module) for module in model.modules()],
        "hooks": [len(getattr(module, kind)) for module in model.modules() for kind in hooks],
        "requires grad": {name: each.requires_grad for name, each in model.named_parameters()},
        "tensors": {name: (id(each), each._version) for name, each in model.named_parameters()},
        "gradients": {
            name: None if each.grad is None else (id(each.grad), each.grad.sum().item())
            for name, each in model.named_parameters()
        },
        "values": {name: value.double().sum().item() for name, value in model.state_dict().items()},
        "torch": torch.get_rng_state().sum().item(),
        "numpy": np.random.get_state()[1].sum(),  # type: ignore[index]
        "python": random.getstate(),
        "enabled": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("trainable", ["all", "head"])
@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_the_model_stays_unchanged(arch: str, trainable: str, training: bool) -> None:
    model = small_model(arch=arch, trainable=trainable)
    model.train(training)
    model.classifier[0].training = not training  # a mode set for a single layer must stay, too
    some = next(model.classifier.parameters())
    some.grad = torch.ones_like(some)
    layer, early = model.cam_layer, "features.3"
    before = state(model)

    outputs = cam.activations(model, images(2, 32), layer)
    cam.probabilities(model, outputs, layer)
    for method in QUICK:
        cam.layer_maps(model, outputs, [0, 1], layer, method)
    cam.explain(model, images(1, 32), [0], "features.0")
    cam.explain(model, images(1, 32), [0], "features.2", "scorecam")
    assert state(model) == before

    with pytest.raises(IndexError):
        cam.layer_maps(model, outputs, [0, 99], layer)
    with pytest.raises(RuntimeError):
        cam.layer_maps(model, outputs, [0, 1], early)
    with pytest.raises(RuntimeError):
        cam.probabilities(model, outputs, early)
    with pytest.raises(RuntimeError):
        cam.activations(model, images(1, 32)[:, :2], layer)
    with pytest.raises(IndexError):
        cam.explain(model, images(1, 32), [99], "features.2", "scorecam")
    with pytest.raises(UserError):
        cam.explain(model, images(1, 32), [0], "classifier.1")
    assert state(model) == before


def test_an_explanation_does_not_change_the_next_gradients() -> None:
    one, two = (small_model(trainable="all", dropout=0.0).train() for _ in range(2))
    cam.explain(one, images(2, 32), [0, 1])
    gradients = []
    for model in (one, two):
        F.cross_entropy(model(images(2, 32)), torch.tensor([0, 1])).backward()
        gradients.append([each.grad for each in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert first is not None
        assert torch.equal(first, second)


def test_a_frozen_layer_stays_frozen_if_an_explanation_fails() -> None:
    model = small_model(trainable="all")
    model.features[3].weight.requires_grad_(False)
    with pytest.raises(IndexError):
        cam.explain(model, images(1, 32), [99])
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == [
        "features.3.weight"
    ]


def test_an_explanation_prints_nothing(model: TransferModel, capfd: pytest.CaptureFixture[str]) -> None:
    cam.explain(model, images(1, 32), [0], "features.2", "scorecam")
    cam.explain(model, images(1, 32), [0])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("vgg11", "features.19"),
        ("vgg16", "features.29"),
        ("vgg11_bn", "features.27"),
        ("vgg16_bn", "features.42"),
    ],
)
def test_the_default_layer_is_the_last_relu_before_the_pooling(arch: str, layer: str) -> None:
    model = TransferModel(
        ModelSpec(arch, "pooled", 1, 16, 0.4, "head", CLASSES, NUMBERS), 0, random_weights=False
    )
    assert model.cam_layer == layer
    layers = dict(model.named_layers())
    assert isinstance(layers[layer], nn.ReLU)
    following = layers[f"features.{int(layer.rpartition('.')[2]) + 1}"]
    assert isinstance(following, nn.MaxPool2d)


def test_every_spatial_layer_has_an_index(model: TransferModel) -> None:
    for index, (name, _) in enumerate(model.named_layers()):
        if name.startswith("features.") or name == "avgpool":
            assert cam.layer_index(model, name) == index
            assert cam.activations(model, images(1, 32), name).dim() == 4


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("features.91", "did you mean 'features.9'"),
        ("feature.4", "did you mean 'features.4'"),
        ("avgpol", "did you mean 'avgpool'"),
        ("", "features.0 to avgpool"),
        ("features", "features.0 to avgpool"),
        ("classifier.1", "'classifier.1'"),
        ("flatten", "'flatten'"),
        ("normalize", "'normalize'"),
    ],
)
def test_a_layer_without_a_spatial_output_is_refused(model: TransferModel, layer: str, message: str) -> None:
    with pytest.raises(UserError, match="has no layer") as refusal:
        cam.layer_index(model, layer)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    for function in (cam.activations, cam.probabilities):
        with pytest.raises(UserError):
            function(model, images(1, 32), layer)
