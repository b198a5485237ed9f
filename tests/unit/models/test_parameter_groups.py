"""Learning rates and weight decay by parameter: named groups, layer decay, biases and normalizations."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from helpers import small_model
from timm.optim import param_groups_layer_decay

from runner.config.train_schema import OptimConfig
from runner.models.parameter_groups import parameter_groups
from runner.models.transfer_model import TransferModel
from runner.utils.errors import UserError

VIT = "timm/vit_tiny_patch16_224"


def by_name(model: TransferModel, groups: list[dict[str, Any]], field: str = "lr") -> dict[str, float]:
    """A value of each trainable parameter; fails if one is in no group or in two."""
    names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    found = [(names[id(parameter)], group[field]) for group in groups for parameter in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_the_longest_name_decides() -> None:
    model = small_model(trainable="all")
    optim = OptimConfig(lr=0.1, groups={"features": 1e-4, "features.16": 1e-3})
    for name, lr in by_name(model, parameter_groups(model, optim)).items():
        expected = 0.1
        if name.startswith("features."):
            expected = 1e-3 if name.startswith("features.16.") else 1e-4
        assert lr == expected, name


def test_a_name_matches_whole_parts() -> None:
    model = small_model(arch="vgg13", trainable="all")  # it has features.2 and features.20
    groups = parameter_groups(model, OptimConfig(lr=0.1, groups={"features.2": 1e-3}))
    (named,) = [group for group in groups if group["lr"] == 1e-3]
    expected = [id(parameter) for parameter in model.features[2].parameters()]
    assert [id(parameter) for parameter in named["params"]] == expected


def test_without_names_everything_trainable_is_one_group() -> None:
    model = small_model()
    (group,) = parameter_groups(model, OptimConfig(lr=0.1, weight_decay=0.3))
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.3)
    expected = [id(parameter) for parameter in model.parameters() if parameter.requires_grad]
    assert [id(parameter) for parameter in group["params"]] == expected
    assert len(expected) == 4


@pytest.mark.parametrize("name", ["nonsense", "features", "features.0", "classifier.2", "class"])
def test_a_name_without_trainable_parameters_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"optim\.groups") as failure:
        parameter_groups(small_model(random_weights=False), OptimConfig(groups={name: 1e-3}))
    assert repr(name) in str(failure.value)


def test_each_block_has_the_rate_of_the_next_times_the_decay() -> None:
    """VGG11 has five blocks between its poolings."""
    model = small_model(trainable="all")
    groups = parameter_groups(model, OptimConfig(lr=0.1, layer_decay=0.5))
    assert [group["name"] for group in groups] == ["head", "block5", "block4", "block3", "block2", "block1"]
    rates = by_name(model, groups)
    first_of_block = {
        "features.0": 5,
        "features.3": 4,
        "features.6": 3,
        "features.8": 3,
        "features.11": 2,
        "features.16": 1,
    }
    for layer, distance in first_of_block.items():
        assert rates[f"{layer}.weight"] == rates[f"{layer}.bias"] == pytest.approx(0.1 * 0.5**distance)
    assert rates["classifier.1.weight"] == 0.1


def test_frozen_blocks_have_no_group() -> None:
    model = small_model(trainable="last:2")
    groups = parameter_groups(model, OptimConfig(lr=0.1, layer_decay=0.5, groups={"features.18": 0.7}))
    assert {group["name"]: group["lr"] for group in groups} == {
        "head": 0.1,
        "block5": 0.05,
        "block4": 0.025,
        "features.18": 0.7,
    }


def test_blocks_of_a_vision_transformer_have_the_rates_of_timm() -> None:
    """But for the last normalization, which is a part of the last block here, and of the head in timm."""
    model = small_model(arch=VIT, head="linear", trainable="all", input_size=224, random_weights=False)
    optim = OptimConfig(lr=1.0, layer_decay=0.7, weight_decay=0.05, decay_norm=False)
    groups = parameter_groups(model, optim)
    own, own_decay = by_name(model, groups), by_name(model, groups, "weight_decay")
    network = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    compared = 0
    for group in param_groups_layer_decay(network, weight_decay=0.05, layer_decay=0.7):
        for parameter in group["params"]:
            name = names[id(parameter)]
            if name in own and name.startswith(("blocks.", "patch_embed.")):
                assert own[name] == pytest.approx(group["lr_scale"]), name
                assert own_decay[name] == group["weight_decay"], name
                compared += 1
    assert compared > 140


@pytest.mark.parametrize("arch", ["vgg11_bn", "resnet18"])
def test_biases_and_normalizations_may_have_no_weight_decay(arch: str) -> None:
    model = small_model(arch=arch, trainable="all")
    decays = by_name(
        model, parameter_groups(model, OptimConfig(weight_decay=0.1, decay_norm=False)), "weight_decay"
    )
    for name, parameter in model.named_parameters():
        assert decays[name] == (0.1 if parameter.ndim > 1 else 0), name
    assert set(
        by_name(model, parameter_groups(model, OptimConfig(weight_decay=0.1)), "weight_decay").values()
    ) == {0.1}


def test_a_network_without_blocks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.models.parameter_groups.block_starts", lambda model: [])
    with pytest.raises(
        UserError, match=r"optim\.layer_decay needs a backbone of several blocks, but vgg11 has none"
    ):
        parameter_groups(small_model(), OptimConfig(layer_decay=0.5))


def test_an_optimizer_keeps_the_rates(accelerator: object) -> None:
    model = small_model(trainable="last:1")
    optimizer = torch.optim.SGD(parameter_groups(model, OptimConfig(lr=0.1, layer_decay=0.5)), 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
