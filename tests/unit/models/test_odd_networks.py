"""Networks that are unlike the others: in how they end, what they do to images, or that they cannot be divided."""

from __future__ import annotations

import pytest
import torch
from helpers import CLASSES, random_images, small_model
from torchvision.models import get_model

from runner.explain import cam
from runner.models.dropout import KeyedDropout, set_dropout_batch
from runner.portable.backbone import find_backbone
from runner.utils.errors import UserError

TWINS = "timm/twins_svt_small"


def test_a_network_that_cannot_be_divided_is_one_block() -> None:
    model = small_model(arch=TWINS, input_size=64).eval()
    assert [*model.layouts] == ["features"]
    assert f"{TWINS} cannot be divided into blocks: " in model.note
    images = random_images(2, 64)
    with torch.no_grad():
        values = model.run(images, 0, 1)
        tokens = model.run(images, 0, 2)
        assert torch.equal(tokens, model.get_submodule("network").forward_features(values))
        assert torch.equal(model.run(images, 0, model.head_index), tokens.mean(1))
        assert model(images).shape == (2, len(CLASSES))


@pytest.mark.parametrize(
    ("arch", "size", "sentence"),
    [
        ("vit_b_32", 100, "vit_b_32 cannot take images of 100 pixels .*; its weights were trained with 224"),
        ("maxvit_t", 100, "maxvit_t cannot take images of 100 pixels .*; its weights were trained with 224"),
        ("timm/coat_tiny", 64, "coat_tiny has no feature maps that a head could be placed on"),
    ],
)
def test_what_cannot_be_used_is_refused(arch: str, size: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        find_backbone(arch).build("pooled", 1, size, random_weights=False)


def test_maps_of_the_classes_are_part_of_the_classifier() -> None:
    model = small_model(arch="squeezenet1_1", input_size=64)
    assert (model.cam_layer, model.head_name) == ("features.12", "classifier")
    assert model.layer_names[1:][-8] == "features.12"
    assert not any(1000 in value.shape for value in model.parameters()), "it is pruned"


@pytest.mark.parametrize(("arch", "size"), [("googlenet", 64), ("inception_v3", 96)])
def test_images_are_normalized_as_pretrained_weights_expect(arch: str, size: int) -> None:
    network = get_model(
        arch, weights=None, init_weights=False, transform_input=True
    )  # with weights, it is True
    model = small_model(arch=arch, input_size=size).eval()
    values = model.run(random_images(2, size), 0, 1)
    assert torch.equal(model.run(values, 1, 2), network._transform_input(values))


def test_a_dropout_that_is_a_function_drops_in_training_by_its_key() -> None:
    for number in range(2):  # the second one is divided as the first one was
        model = small_model(arch="timm/ghostnet_100", head="classifier", trainable="all", input_size=64)
        (name,) = (each for each in model.layer_names if each.startswith("functional_dropout"))
        dropout = model.get_submodule(name)
        assert isinstance(dropout, KeyedDropout), number
        assert dropout.p == 0.2
    dropped, values = [], torch.ones(4, 50)
    for _ in range(2):
        set_dropout_batch(model.modules(), step=1, samples=slice(0, 4), batch_size=4)
        dropped.append(dropout.train()(values))
    assert 0 < (dropped[0] == 0).float().mean() < 0.5
    assert torch.equal(*dropped)
    assert torch.equal(dropout.eval()(values), values)


def test_values_without_places_in_space_are_no_layer_to_explain_and_one_level_to_normalize() -> None:
    model = small_model(
        arch="timm/vit_tiny_patch16_224", input_size=32, pool=(1, 2, 3), head="linear", norm="l2"
    )
    features = model.run(random_images(2), 0, model.head_index + 1)
    assert torch.allclose(features.norm(dim=1), torch.ones(2))
    pooling = model.layer_names[model.pooling_index]
    with pytest.raises(UserError, match=f"no layer {pooling!r} with a spatial output"):
        cam.layer_index(model, pooling)
