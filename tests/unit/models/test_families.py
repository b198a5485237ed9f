"""Each family of networks: what its blocks compute, what checkpoints hold, predictions, and what Grad-CAM explains."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from helpers import checkpoint_content, random_images
from torch import Tensor, nn

from runner.explain import cam
from runner.models import checkpoint
from runner.models.dropout import set_dropout_batch
from runner.models.transfer_model import TransferModel
from runner.portable.classifier import Classifier
from runner.serving import packaging
from runner.serving.packaging import describe, to_classifier

QUICK = ("ResNet", "MobileNetV3", "ConvNeXt", "ViT")
EACH = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES]
)


@functools.cache
def library_network(name: str) -> nn.Module:
    """The library's network with weights and batch statistics that are not the initial ones, some of which are 0."""
    network = FAMILIES[name].network()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, value in network.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator)
                value += 0.1 * noise if "running" in key else 0.04 * (noise - 0.5)
    return network.requires_grad_(False).to(memory_format=torch.channels_last).eval()


def with_library_weights(name: str, **changes: str) -> TransferModel:
    """A model with the library's weights."""
    model, own = FAMILIES[name].model(**changes), ("normalize.",)
    own += (f"{model.head_name}.",)
    tensors = library_network(name).state_dict().items()
    missing, left = model.load_state_dict(
        {key: value for key, value in tensors if not key.startswith(own)}, strict=False
    )
    assert all(key.startswith(own) for key in missing)
    assert {*left} <= {*model.unused}
    return model.eval()


def seen_by_last_layer(network: nn.Module, values: Tensor, last: str) -> Tensor:
    """What a network's last layer takes."""
    seen: list[Tensor] = []
    layer = network.get_submodule(last)
    handle = layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network(values)
    handle.remove()
    (features,) = seen
    return features


@EACH
def test_blocks_compute_what_the_librarys_network_does(name: str) -> None:
    family, network = FAMILIES[name], library_network(name)
    model = with_library_weights(name, head=family.heads[0])
    images = random_images(4, family.size)
    with torch.no_grad():
        values = model.run(images, 0, 1)
        features = model.run(images, 0, model.head_index)
        steps = images
        for index in range(model.head_index):
            steps = model.run(steps, index, index + 1)
    assert torch.equal(steps, features)
    assert features.std() > 1e-4
    if family.heads[0] == "classifier":
        assert torch.equal(features, seen_by_last_layer(network, values, model.head_name))
    else:
        with torch.no_grad():
            assert torch.equal(features, network.forward_features(values)[:, 0])  # type: ignore[operator]


@EACH
def test_a_checkpoint_holds_exactly_what_trains(name: str, tmp_path: Path) -> None:
    for trainable in ("head", "last:1"):
        model = FAMILIES[name].model(trainable=trainable)
        folder = tmp_path / trainable
        folder.mkdir()
        checkpoint.save_frozen(model, folder)
        checkpoint.save(model, folder / "best.safetensors", 1, {}, checkpoint.frozen_digest(model), {})
        tensors, _ = checkpoint_content(folder / "best.safetensors")
        trains = {key for key, each in model.named_parameters() if each.requires_grad}
        layers = tuple({f"{key.rpartition('.')[0]}." for key in trains})
        trains |= {
            key for key, _ in model.named_buffers() if key.startswith(layers)
        } & model.state_dict().keys()
        if trainable == "head":
            assert trains == {key for key in model.state_dict() if key.startswith(f"{model.head_name}.")}
        else:
            assert any(not key.startswith(f"{model.head_name}.") for key in trains)
        assert tensors.keys() == trains == model.trainable_state().keys()
        assert model.frozen_state().keys() == model.state_dict().keys() - trains
        loaded = checkpoint.load(folder / "best.safetensors").model.state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


@EACH
def test_all_parameters_train_if_all_is_to_train(name: str) -> None:
    """Also class tokens and position embeddings, which belong to no layer."""
    family = FAMILIES[name]
    model = family.model(trainable="all", dropout=0.0).train()
    set_dropout_batch(model.modules(), 0, slice(0, 4), 4)
    nn.functional.cross_entropy(model(random_images(4, family.size)), torch.tensor([0, 1, 2, 0])).backward()
    assert [key for key, each in model.named_parameters() if each.grad is None] == []
    assert model.frozen_state().keys() == {"normalize.mean", "normalize.std"}
    tensors = {key for index in range(model.depth) for key in model.layer_tensors(index)}
    buffers = {key for key, _ in model.named_buffers()}  # a few are computed, not stored
    assert {*model.state_dict()} <= tensors <= {*model.state_dict()} | buffers


@EACH
def test_frozen_layers_compute_the_same_in_training_mode(name: str) -> None:
    family = FAMILIES[name]
    model = family.model(trainable="last:1")
    images = random_images(4, family.size)
    before = {key: value.clone() for key, value in model.frozen_state().items()}
    assert 1 < model.split_index < model.head_index
    with torch.no_grad():
        expected = model.eval().run(images, 0, model.split_index)
        assert torch.equal(model.train().run(images, 0, model.split_index), expected)
    assert all(torch.equal(value, before[key]) for key, value in model.frozen_state().items())


@EACH
def test_predictions_do_not_depend_on_the_batch(name: str) -> None:
    family = FAMILIES[name]
    model = with_library_weights(name)
    settings = {"resize": family.size, "crop": family.size, "interpolation": "bilinear"}
    description = describe(model, {"name": "small", "transform": settings, "precision": "no"}, epoch=1)
    classifier = to_classifier(model, description, "cpu")
    images = random_images(7, family.size)
    alone = torch.cat([classifier.logits(image[None]) for image in images])
    assert alone.std() > 0
    order = torch.randperm(7, generator=torch.Generator().manual_seed(2))
    # torch computes the last values of a small tensor, such as SiLU's of six channels, without vector instructions.
    tolerance = 1e-6 if name == "EfficientNet" else 0.0
    for together, expected in (
        (classifier.logits(images), alone),
        (classifier.logits(images[order]), alone[order]),
    ):
        torch.testing.assert_close(together, expected, rtol=0.0, atol=tolerance)


@EACH
def test_a_logged_model_computes_the_same(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = with_library_weights(name, trainable="last:1")
    settings = {"resize": family.size, "crop": family.size, "interpolation": "bilinear"}
    description = describe(model, {"name": "small", "transform": settings, "precision": "no"}, epoch=1)
    images = random_images(3, family.size)
    expected = to_classifier(model, description, "cpu").logits(images)
    packaging._write_classifier(model, description, tmp_path / "described", tmp_path / "weights", None)
    for path in (tmp_path / "weights").iterdir():
        path.replace(tmp_path / "described" / path.name)
    # Memory of a file is aligned in another way, for which torch may choose another kernel.
    loaded = Classifier.load(tmp_path / "described", "cpu").logits(images)
    torch.testing.assert_close(loaded, expected, rtol=0.0, atol=1e-6)


def as_maps(values: Tensor, kind: str, grid: int) -> Tensor:
    """A layer's output as n × channels × grid × grid."""
    if kind == "channels_first":
        return values
    if kind == "channels_last":
        return values.permute(0, 3, 1, 2)
    return values[:, -(grid**2) :].transpose(1, 2).reshape(len(values), -1, grid, grid)


@EACH
def test_grad_cam_explains_the_right_layer_by_itself(name: str) -> None:
    """Compared with equations 1 and 2 of Selvaraju et al. 2017, by plain autograd."""
    family = FAMILIES[name]
    model = with_library_weights(name)
    images, targets = random_images(3, family.size), [0, 1, 2]
    start = model.layer_names.index(model.cam_layer) + 1
    kind = model.layouts[model.cam_layer].kind
    outputs = cam.activations(model, images, model.cam_layer)
    tapped = outputs.clone().requires_grad_(True)
    logits = model.run(tapped.clone(), start, model.depth)[range(3), targets]
    (gradients,) = torch.autograd.grad(logits.sum(), tapped)
    weights = as_maps(gradients, kind, family.grid).mean((2, 3), keepdim=True)
    expected = (weights * as_maps(outputs, kind, family.grid)).sum(1).relu()
    low, high = expected.amin((1, 2), keepdim=True), expected.amax((1, 2), keepdim=True)
    scaled = ((expected - low) / (high - low).clamp(min=1e-12)).detach()
    actual = cam.layer_maps(model, outputs, targets, model.cam_layer)
    assert actual.shape == (3, family.grid, family.grid)
    clear = (high > 1e-4).flatten().numpy()  # a map that is 0 everywhere has no scale
    np.testing.assert_allclose(actual[clear], scaled.numpy()[clear], atol=5e-3)
    assert cam.explain(model, images, targets).shape == (3, family.size, family.size)


def test_the_families_are_of_both_libraries() -> None:
    assert len(FAMILIES) == 15
    assert {each.arch.startswith("timm/") for each in FAMILIES.values()} == {True, False}
