"""The VGG backbones against torchvision's own models."""

from __future__ import annotations

import pytest
import torch
import torchvision
from helpers import random_images, small_model
from torch import Tensor, nn
from torchvision.transforms import v2
from vgg_weights import drawn_weights, torchvision_model

from runner.config.schema import Normalization
from runner.models import pretrained
from runner.models.pretrained import PretrainedWeights
from runner.portable.backbones import BACKBONES

ARCHS = [f"vgg{depth}{suffix}" for suffix in ("", "_bn") for depth in (11, 13, 16, 19)]
NORMALIZATION = Normalization((0.5, 0.45, 0.4), (0.25, 0.2, 0.3))


def normalized(images: Tensor) -> Tensor:
    """As torchvision's own transforms do it."""
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Normalize(NORMALIZATION.mean, NORMALIZATION.std)(to_float(images))


@pytest.mark.parametrize("head", ["classifier", "pooled"])
@pytest.mark.parametrize("arch", ARCHS)
def test_layers_have_its_names(arch: str, head: str) -> None:
    model = small_model(arch=arch, head=head, random_weights=False)
    head_name = "classifier.6." if head == "classifier" else "classifier."
    assert f"{model.head_name}." == head_name
    ours = [name for name in model.state_dict() if not name.startswith(("normalize.", head_name))]
    theirs = [name for name in torchvision_model(arch).state_dict() if not name.startswith(head_name)]
    assert ours == theirs


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn", "vgg16"])
def test_same_weights_give_the_same_pooled_convolutions(arch: str) -> None:
    tensors = drawn_weights(arch, classifier=False)
    model = small_model(arch=arch, pool=2, normalization=NORMALIZATION, random_weights=False).eval()
    pretrained.load_weights(model, PretrainedWeights("drawn", tensors, None))
    theirs = torchvision_model(arch)
    theirs.load_state_dict(tensors, strict=False, assign=True)
    theirs.avgpool = nn.AdaptiveAvgPool2d(2)
    images = random_images(3, 64)
    with torch.no_grad():
        expected = theirs.avgpool(theirs.features(normalized(images))).flatten(1)
        features = model.run(images, 0, model.split_index)
    assert expected.std() > 0.01
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


def test_same_weights_give_the_same_4096_inputs_of_the_classifier_head() -> None:
    tensors = drawn_weights("vgg11")
    model = small_model(head="classifier", normalization=NORMALIZATION, random_weights=False).eval()
    pretrained.load_weights(model, PretrainedWeights("drawn", tensors, None))
    theirs = torchvision_model("vgg11")
    theirs.load_state_dict(tensors, strict=False, assign=True)
    theirs.classifier[6] = nn.Identity()
    images = random_images(2, 32)
    with torch.no_grad():
        expected = theirs(normalized(images))
        inputs = model.run(images, 0, model.layer_names.index("classifier.6.0"))
    assert inputs.shape == (2, 4096)
    assert expected.std() > 0.01
    torch.testing.assert_close(inputs, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arch", ARCHS)
def test_its_facts_are_those_of_torchvision_s_weights(arch: str) -> None:
    backbone = BACKBONES[arch]
    transforms = torchvision.models.get_weight(f"{backbone.weights_enum}.IMAGENET1K_V1").transforms()
    prepared = backbone.preprocessing(None)
    assert (tuple(transforms.mean), tuple(transforms.std)) == (prepared.mean, prepared.std)
    assert (transforms.crop_size, transforms.resize_size) == ([prepared.crop], [prepared.resize])
    assert transforms.interpolation.value == prepared.interpolation


@pytest.mark.parametrize("arch", ["vgg11", "vgg19_bn"])
def test_the_smallest_image_that_it_can_process(arch: str) -> None:
    size = BACKBONES[arch].min_input_size
    model = small_model(arch=arch).eval()
    with torch.no_grad():
        assert model(random_images(1, size)).shape == (1, 3)
        with pytest.raises(RuntimeError):
            model(random_images(1, size - 1))


@pytest.mark.parametrize("arch", ARCHS)
def test_spatial_layers_end_with_the_pooling(arch: str) -> None:
    model = small_model(arch=arch, random_weights=False)
    assert model.spatial_layers[0] == "features.0"
    assert model.spatial_layers[-1] == "avgpool"
    assert model.cam_layer in model.spatial_layers
