"""Settings that follow the architecture where they are not given."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import Make

from runner.config.architecture import for_network, with_usual_values
from runner.config.parser import parse
from runner.config.schema import Experiment, Normalization
from runner.config.tree import override
from runner.utils.errors import UserError

RESNET = ("ResNet18_Weights.IMAGENET1K_V1", 224, 256, "bilinear")
LITE0 = "timm/tf_efficientnet_lite0"
VGG16 = "VGG16_Weights.IMAGENET1K_V1"
VIT = "timm/vit_small_patch14_dinov2.lvd142m"


def prepared(experiment: Experiment) -> tuple[Any, ...]:
    """Weights, and how images are prepared for them."""
    augment = experiment.augment
    return experiment.model.weights, augment.crop, augment.resize, augment.interpolation


def test_an_architecture_brings_its_weights_and_their_preparation() -> None:
    experiment, _ = parse(["--config", "folder", "--data.root", "photos", "--model.arch", "resnet18"])
    assert prepared(experiment) == RESNET
    experiment, _ = parse(["--config", "caltech101", "--model.arch", VIT])
    assert prepared(experiment) == ("lvd142m", 518, 518, "bicubic")
    assert experiment.model.normalize == Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_each_vgg_has_its_own_weights_and_the_reports_preparation() -> None:
    experiment, _ = parse(["--config", "caltech101", "--model.arch", "vgg11"])
    assert prepared(experiment) == ("VGG11_Weights.IMAGENET1K_V1", 224, 256, "bilinear")
    assert experiment.model.normalize == "statistics"


def test_what_is_given_stays() -> None:
    words = ["--config", "caltech101", "--model.arch", "resnet18"]
    experiment, _ = parse(
        [*words, "--augment.crop", "96", "--augment.resize", "100", "--model.weights", "null"]
    )
    assert prepared(experiment) == (None, 96, 100, "bilinear")
    experiment, _ = parse(["--config", "quickstart", "--model.arch", "resnet18"])
    assert prepared(experiment) == (None, 64, 72, "bilinear")  # random weights stay random


def test_weights_and_normalization_of_another_architecture_are_left_out() -> None:
    words = ["--config", "caltech101-pooled", "--model.weights", VGG16]
    vgg, _ = parse([*words, "--model.normalize", VGG16])
    experiment = override(vgg, {"model.arch": "resnet18"})
    assert experiment.model.weights == RESNET[0]
    assert isinstance(experiment.model.normalize, Normalization)


def test_weights_in_a_file_stay() -> None:
    experiment, _ = parse(["--config", "caltech101-solved", "--model.arch", "resnet18"])
    assert (
        experiment.model.weights == "weights/vgg16_features.safetensors"
    )  # which is refused where it is read


@pytest.mark.parametrize(
    ("arch", "weights", "size", "mean"),
    [
        ("resnet50", "ResNet50_Weights.IMAGENET1K_V1", (224, 256), 0.485),
        ("vit_b_16", "ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1", (384, 384), 0.485),
        ("timm/mobilenetv3_large_100", "miil_in21k", (224, 256), 0.0),
    ],
)
def test_images_are_prepared_as_the_weights_need_it(
    arch: str, weights: str, size: tuple[int, int], mean: float
) -> None:
    start = ["--config", "caltech101"]
    experiment, _ = parse([*start, "--model.arch", arch, "--model.weights", weights])
    usual, _ = parse([*start, "--model.arch", arch])
    for each in (experiment, override(usual, {"model.weights": weights})):
        assert (each.augment.crop, each.augment.resize) == size
        assert isinstance(each.model.normalize, Normalization)
        assert each.model.normalize.mean[0] == mean
    assert prepared(override(experiment, {"model.weights": usual.model.weights})) == prepared(usual)


def test_weights_that_the_new_architecture_has_too_stay() -> None:
    lite, _ = parse(["--config", "caltech101", "--model.arch", LITE0, "--model.weights", "package"])
    assert override(lite, {"model.arch": LITE0.replace("lite0", "lite2")}).model.weights == "package"
    assert override(lite, {"model.arch": "resnet18"}).model.weights == RESNET[0]
    usual = override(lite, {"model.weights": "in1k"})
    assert (
        override(usual, {"model.arch": "timm/resnet50"}).model.weights == "a1_in1k"
    )  # though it has in1k, too


def test_the_size_to_resize_to_follows_that_of_the_crop() -> None:
    experiment, _ = parse(["--config", "folder", "--data.root", "photos", "--augment.crop", "112"])
    assert prepared(experiment)[1:3] == (112, 128)


def test_sizes_that_are_given_stay_together() -> None:
    tree = {"model": {"arch": "resnet50"}, "augment": {"crop": 224, "resize": 256}}
    assert for_network(tree, {"model.arch": VIT})["augment"] == tree["augment"]


def test_a_study_may_vary_the_architecture(make: Make) -> None:
    baseline, _ = parse(["--config", "folder", "--data.root", "photos"])
    assert prepared(override(baseline, {"model.arch": "resnet18"})) == RESNET
    assert prepared(
        override(override(baseline, {"model.arch": "resnet18"}), {"model.arch": "vgg16"})
    ) == prepared(baseline)
    small = override(make("--model.weights", "null"), {"model.arch": "resnet18"})
    assert prepared(small)[:2] == (None, 32)


def test_neither_changes_its_argument() -> None:
    tree = {"model": {"arch": "vgg16", "weights": VGG16}}
    assert for_network(tree, {"model.arch": "resnet18"}) == {"model": {"arch": "resnet18"}}
    assert with_usual_values(tree)["augment"]["crop"] == 224
    assert tree == {"model": {"arch": "vgg16", "weights": VGG16}}


@pytest.mark.parametrize(
    ("arch", "hint"),
    [
        ("resnet81", "did you mean 'resnet18'"),
        ("timm/resnet81", "did you mean 'timm/resnet"),
        ("convnext_tiny.fb_in22k_ft_in1k", "did you mean 'timm/convnext_tiny.fb_in22k_ft_in1k'"),
        ("timm/vit_base_patch16_224_in21k", "did you mean 'timm/vit_base_patch16_224"),
        ("fcn_resnet50", "no architecture"),
        ("", "no architecture"),
    ],
)
def test_an_unknown_architecture_is_refused_with_similar_names(arch: str, hint: str) -> None:
    with pytest.raises(UserError, match=r"model\.arch is") as failure:
        parse(["--config", "quickstart", f"--model.arch={arch}"])
    assert hint in str(failure.value)
