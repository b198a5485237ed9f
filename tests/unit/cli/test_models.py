"""`runner models`: what `model.arch` takes."""

from __future__ import annotations

import json

import pytest

from runner.cli import models
from runner.portable.backbones import BACKBONES
from runner.utils.errors import UserError


def listed(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, object]]:
    """What `--json` prints."""
    assert models.main([*words, "--json"]) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_few_architectures_are_described_with_their_split_points(capsys: pytest.CaptureFixture[str]) -> None:
    (resnet,) = listed(capsys, "--filter", "resnet18")
    assert (resnet["parameters"], resnet["input_size"]) == (11_176_512, 224)
    assert resnet["weights"] == "ResNet18_Weights.IMAGENET1K_V1"
    assert resnet["split_points"] == [
        {"trainable": "head", "layer": "flatten", "values": 512},
        {"trainable": "last:1", "layer": "layer4.0", "values": 512 * 7 * 7},
        {"trainable": "all", "layer": "", "values": 0},
    ]


def test_installed_packages_of_weights_count_as_here(capsys: pytest.CaptureFixture[str]) -> None:
    (lite,) = listed(capsys, "--filter", "timm/tf_efficientnet_lite0")
    assert lite["weights_here"] is True
    (other,) = listed(capsys, "--filter", "timm/tf_efficientnet_lite1")
    assert other["weights_here"] is False


def test_without_a_filter_names_and_sizes_of_torchvision_are_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert models.main([]) == 0
    text = capsys.readouterr().out
    assert all(arch in text for arch in (*BACKBONES, "convnext_tiny", "vit_b_16"))
    assert "of timm" in text


def test_a_network_that_cannot_be_divided_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert models.main(["--filter", "timm/twins_svt_small", "--markdown"]) == 0
    text = capsys.readouterr().out
    assert "| timm/twins_svt_small | 23.5 M | 224 px | no | pooling, 512 values |" in text
    assert "cannot be divided into blocks" in text


def test_a_filter_without_a_match_is_refused_with_similar_names() -> None:
    with pytest.raises(UserError, match="did you mean 'resnet"):
        models.main(["--filter", "resnet1818"])


def test_an_architecture_that_cannot_be_used_is_listed_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (found,) = listed(capsys, "--filter", "timm/deepseek_vit_412m")
    assert found["split_points"] == []
    assert "takes images with a border" in str(found["note"])


def test_a_filter_finds_names_of_timm_without_their_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    assert "timm/tf_efficientnet_lite0" in [each["arch"] for each in listed(capsys, "--filter", "lite0")]
