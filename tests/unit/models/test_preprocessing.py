"""Images are prepared as the library that the weights come from prepares them, pixel for pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torchvision.transforms import v2

from runner.portable.backbone import Preprocessing, find_backbone
from runner.portable.model import Normalize
from runner.portable.transform import evaluation_transform

SIZES = [(500, 375), (300, 451), (224, 224), (90, 640), (31, 17)]
"""Width and height of images."""
TORCHVISION = [
    "vgg16",
    "resnet50",
    "efficientnet_b1",
    "vit_b_16",
    "swin_t",
    "maxvit_t",
    "convnext_tiny",
    "regnet_y_400mf",
]
TIMM = [
    "tf_efficientnet_lite0.in1k",
    "convnext_tiny.fb_in22k_ft_in1k",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch16_224.augreg2_in21k_ft_in1k",
    "deit_tiny_patch16_224.fb_in1k",
    "resnet50.a1_in1k",
    "mobilenetv3_small_100.lamb_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "regnety_002.pycls_in1k",
    "maxvit_tiny_tf_384.in1k",  # squashed
    "densenet121.ra_in1k",
]


def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    small = [
        generator.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), np.uint8) for width, height in SIZES
    ]
    return [Image.fromarray(each).resize(size) for each, size in zip(small, SIZES, strict=True)]


def ours(prepared: Preprocessing) -> Any:
    """The evaluation transform with an architecture's usual settings, and the model's normalization."""
    transform = evaluation_transform(
        prepared.resize, prepared.crop, prepared.interpolation, prepared.crop_mode
    )
    normalize = Normalize(prepared.mean, prepared.std)
    return lambda image: (transform(image), normalize(transform(image)[None])[0])


@pytest.mark.parametrize("arch", TORCHVISION)
def test_as_torchvision_prepares_images(arch: str) -> None:
    prepared = find_backbone(arch).preprocessing(None)
    transform = torchvision.models.get_weight(str(find_backbone(arch).default_weights())).transforms()
    for image in images():
        pixels, values = ours(prepared)(image)
        theirs = transform(image)
        mean, std = (torch.tensor(each).view(3, 1, 1) for each in (transform.mean, transform.std))
        assert torch.equal((theirs * std + mean).mul(255).round().to(torch.uint8), pixels)
        assert torch.allclose(values, theirs, atol=1e-5)


@pytest.mark.parametrize("name", TIMM)
def test_as_timm_prepares_images(name: str) -> None:
    prepared = find_backbone(f"timm/{name}").preprocessing(None)
    config = timm.get_pretrained_cfg(name)
    transform = create_transform(
        config.input_size,
        is_training=False,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
        crop_pct=config.crop_pct,
        crop_mode=config.crop_mode,
    )
    *spatial, _, _ = transform.transforms  # the last two make a tensor and normalize it
    for image in images():
        pixels, values = ours(prepared)(image)
        assert torch.equal(v2.functional.pil_to_tensor(v2.Compose(spatial)(image)), pixels)
        assert torch.allclose(values, transform(image), atol=1e-5)


@pytest.mark.slow
def test_all_weights_of_timm_can_be_prepared_for_or_are_refused() -> None:
    refused, squashed = set[str](), 0
    for name in timm.list_pretrained():
        try:
            prepared = find_backbone(f"timm/{name}").preprocessing(None)
        except ValueError as error:
            refused.add(str(error).partition(" takes images ")[2])
            continue
        assert prepared.interpolation in ("bilinear", "bicubic")
        assert len(prepared.mean) == len(prepared.std) == 3
        squashed += prepared.crop_mode == "squash"
    ending = "which is not supported; use another architecture"
    assert refused == {f"with a border, {ending}", f"that are not square, {ending}"}
    assert squashed > 100
