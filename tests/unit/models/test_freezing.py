"""model.trainable=last:K trains the last K blocks of a backbone, whatever its layers are called."""

from __future__ import annotations

import pytest
from helpers import small_model

from runner.models.freezing import block_starts
from runner.utils.errors import UserError


def starts(arch: str, size: int = 64) -> list[str]:
    """Names of the layers that blocks begin with."""
    model = small_model(arch=arch, input_size=size, random_weights=False)
    return [model.layer_names[index] for index in block_starts(model)]


def test_the_blocks_of_a_vgg_are_its_convolutions_between_poolings() -> None:
    assert starts("vgg11", 32) == [f"features.{index}" for index in (0, 3, 6, 11, 16)]
    assert starts("vgg16_bn", 32) == [f"features.{index}" for index in (0, 7, 14, 24, 34)]


def test_the_blocks_of_a_resnet_are_its_residual_blocks() -> None:
    assert starts("resnet18") == [f"layer{stage}.{index}" for stage in (1, 2, 3, 4) for index in (0, 1)]


def test_the_blocks_of_a_vit_are_those_of_attention() -> None:
    assert starts("timm/vit_tiny_patch16_224", 32) == [f"blocks.{index}" for index in range(12)]


def test_blocks_of_several_layers_begin_with_their_first_one() -> None:
    """Blocks of EfficientNet and MobileNet without a residual branch are chains."""
    found = starts("efficientnet_b0")
    assert len(found) == 16
    assert found[0] == "features.1.0.block.0.0"
    assert found[-1] == "features.7.0.block.0.0"
    found = starts("timm/mobilenetv3_small_050")
    assert found[-2:] == ["blocks.4.1", "blocks.4.2"]
    assert not any(name.rpartition(".")[2].startswith("bn") for name in found)


def test_the_last_blocks_and_all_after_them_train() -> None:
    model = small_model(arch="timm/vit_tiny_patch16_224", input_size=32, trainable="last:2")
    trained = {name for name in model.trainable_state() if not name.startswith(("blocks.10.", "blocks.11."))}
    assert trained == {"norm.weight", "norm.bias"} | {name for name in trained if name.startswith("head.")}
    assert {"cls_token", "pos_embed"} <= model.frozen_state().keys()


def test_more_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"last:9, but the backbone has 8 blocks; use all to train it"):
        small_model(arch="resnet18", input_size=64, trainable="last:9", random_weights=False)
    with pytest.raises(UserError, match=r"'last:0', which is no layer"):
        small_model(trainable="last:0", random_weights=False)
