"""Variants of an image: scales, mirror images, and the layers that are pooled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runner.explain import cam
from runner.models.transfer_model import TransferModel
from runner.utils.errors import UserError
from tests.helpers import random_images, small_model


def model(**changes: Any) -> TransferModel:
    return small_model(**{"head": "linear", "pool": (1, 2), **changes}).eval()


def pooled(maps: Tensor) -> Tensor:
    """What a pyramid of 1 and 4 bins makes of maps."""
    return torch.cat([F.adaptive_avg_pool2d(maps, size).flatten(1) for size in (1, 2)], 1)


def maps_of(plain: TransferModel, images: Tensor, size: int, layer: str = "features.20") -> Tensor:
    """A layer's output for images at another size."""
    values = F.interpolate(plain.normalize(images), size=(size, size), mode="bicubic", antialias=True)
    for index in range(1, plain.layer_names.index(layer) + 1):
        values = plain.get_submodule(plain.layer_names[index])(values)
    return values


@torch.no_grad()
def test_flips_average_the_maps_of_an_image_and_its_mirror_image() -> None:
    plain, flips, images = model(), model(tta="flips"), random_images(size=64)
    maps = [plain.run(each, 0, plain.pooling_index) for each in (images, images.flip(-1))]
    expected = plain.run((maps[0] + maps[1].flip(-1)) / 2, plain.pooling_index, plain.depth)
    assert torch.equal(flips(images), expected)
    symmetric = model(tta="flips", pool=1)
    assert torch.allclose(symmetric(images), symmetric(images.flip(-1)), atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tta", ["none", "scales"])
def test_pooled_values_of_scales_are_stacked_or_averaged(tta: str) -> None:
    plain, images = model(), random_images(size=64)
    scales = model(scales=(32, 64), tta=tta)
    parts = [pooled(maps_of(plain, images, size)) for size in (32, 64)]
    expected = torch.stack(parts).mean(0) if tta == "scales" else torch.cat(parts, 1)
    assert torch.allclose(scales.run(images, 0, scales.head_index), expected, rtol=1e-4, atol=1e-5)
    assert scales.last_layer.in_features == expected.shape[1]


@torch.no_grad()
def test_layers_are_pooled_in_the_order_of_the_forward_pass() -> None:
    plain, images = model(), random_images(size=64)
    layers = model(pooled_layers=("features.20", "features.9"))
    expected = torch.cat(
        [pooled(maps_of(plain, images, 64, layer)) for layer in ("features.9", "features.20")], 1
    )
    assert torch.allclose(layers.run(images, 0, layers.head_index), expected, rtol=1e-4, atol=1e-5)
    assert layers.last_layer.in_features == expected.shape[1] == (256 + 512) * 5


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"tta": "flips"},
        {"scales": (32, 64), "norm": "l2", "power": 0.5},
        {"scales": (32, 48, 64), "tta": "flips+scales", "pooled_layers": ("features.15", "features.20")},
        {"scales": (32, 64), "head": "pooled", "pool": 2},
        {"pooled_layers": ("features.8", "features.20")},  # an in-place ReLU follows the first
        {"tta": "flips", "head": "classifier", "pool": 3},
    ],
)
def test_the_frozen_parts_one_by_one_are_the_model(changes: dict[str, Any]) -> None:
    several, images = model(**changes), random_images(2, size=64)
    outputs: list[Tensor] = []
    for stage in several.frozen_stages:
        if stage.inputs:
            values = several.run([outputs[index] for index in stage.inputs], stage.start, stage.stop)
        else:
            values = several.variant_map(images, stage.variant, stage.stop)
        outputs.append(values)
    result = several.run(outputs[-1], several.split_index, several.depth)
    assert torch.equal(result, several(images))
    assert torch.isfinite(result).all()


def test_the_norm_is_taken_of_each_level_of_each_scale() -> None:
    several = model(scales=(32, 64), norm="l2")
    assert several.get_submodule("classifier.0").sizes == (512, 2048, 512, 2048)


@pytest.mark.parametrize("trainable", ["all", "features.16"])
@pytest.mark.parametrize("changes", [{"tta": "flips"}, {"scales": (32, 64)}])
def test_several_maps_need_frozen_convolutions(trainable: str, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"are for frozen convolutions, but model\.trainable is"):
        model(trainable=trainable, **changes)


@pytest.mark.parametrize("layer", ["features.99", "avgpool", "normalize"])
def test_a_layer_that_cannot_be_pooled_is_refused(layer: str) -> None:
    with pytest.raises(UserError, match=rf"model\.pooled_layers: '{layer}' is no layer before the pooling"):
        model(pooled_layers=(layer,))


@pytest.mark.parametrize("method", ["gradcam", "eigencam"])
@pytest.mark.parametrize(
    "changes",
    [
        {"tta": "flips"},
        {"scales": (64, 96), "tta": "flips"},
        {"pooled_layers": ("features.9", "features.15")},
    ],
)
def test_maps_explain_all_variants(changes: dict[str, Any], method: str) -> None:
    several, images = model(**changes), random_images(2, size=96)
    maps = cam.explain(several, images, [0, 1], method=method)
    assert maps.shape == (2, 96, 96)
    assert 0 <= maps.min() < maps.max() <= 1
    outputs = cam.activations(several, images, several.cam_layer)
    expected = several(images).softmax(1)
    assert torch.allclose(cam.probabilities(several, outputs, several.cam_layer), expected, atol=1e-5)
    assert all(each.grad is None for each in several.parameters())


def test_score_cam_masks_all_variants() -> None:
    several, images = model(scales=(32, 64), pool=1), random_images(1, size=64)
    maps = cam.explain(several, images, [0], "features.0", "scorecam")  # 64 channels
    assert maps.shape == (1, 64, 64)
    assert 0 <= maps.min() < maps.max() <= 1


def test_a_map_of_a_mirrored_image_is_the_mirrored_map() -> None:
    several, images = model(tta="flips", pool=(1,)), random_images(2, size=96)
    one, other = (cam.explain(several, each, [0, 1]) for each in (images, images.flip(-1)))
    assert abs(one - other[:, :, ::-1]).max() < 1e-4


def test_the_pooling_can_be_explained_where_it_has_a_height_and_width() -> None:
    several, images = model(scales=(64, 96), pool=2), random_images(2, size=96)
    assert cam.explain(several, images, [0, 1], "avgpool").shape == (2, 96, 96)
    pyramid = model(scales=(64, 96))
    with pytest.raises(UserError, match="is a single pixel and cannot show a region"):
        cam.explain(pyramid, images, [0, 1], "avgpool")
