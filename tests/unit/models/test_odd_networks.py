"""Networks that cannot be divided into blocks, and those that cannot be used, or not for images of such a size."""

from __future__ import annotations

import pytest
import torch
from helpers import CLASSES, random_images, small_model

from runner.portable.backbone import find_backbone

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
