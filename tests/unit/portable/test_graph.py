"""Blocks that are found in a network's graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runner.config import parser
from runner.portable import backbone
from runner.portable.backbone import find_backbone
from runner.portable.graph import UntracedError, find_blocks, run_block
from runner.portable.model import build_backbone
from runner.utils.errors import UserError


class Residual(nn.Module):
    """Two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.conv(values)


class Network(nn.Module):
    """Residual blocks, functions between modules, and a parameter that belongs to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 5)
        self.stages = nn.Sequential(Residual(), nn.Sequential(nn.ReLU(), Residual()))
        self.scale = nn.Parameter(torch.full((4, 1, 1), 2.0))
        self.stem = nn.Conv2d(3, 4, 2, stride=2)

    def forward(self, values: Tensor) -> Tensor:
        values = F.relu(self.stem(values)) * self.scale
        skipped = values
        values = self.stages(values)
        return self.fc((values + skipped).mean((2, 3)))


def test_blocks_end_where_one_tensor_is_still_needed() -> None:
    network = Network().eval()
    blocks, shapes = find_blocks(network, 8)
    names = [block.name for block in blocks]
    assert names[0] == "stem"
    assert names[-1] == "fc"
    (around,) = (block for block in blocks if any(member.startswith("stages") for member in block.members))
    assert {"stages.0", "stages.1.1"} <= {*around.members}, "what is skipped to is alive until the sum"
    assert sum("scale" in block.members for block in blocks) == 1
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        values = images
        for block, shape in zip(blocks, shapes, strict=True):
            values = run_block(network, block, values)
            assert values.shape == shape
        assert torch.equal(values, network(images))


def test_a_residual_block_stays_one_block() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sequential(Residual(), Residual()), nn.Flatten(1)).eval()
    assert [block.name for block in find_blocks(network, 4)[0]] == ["0", "1.0", "1.1", "2"]
    assert all(block.function is None for block in find_blocks(network, 4)[0])


class Branching(nn.Module):
    """What it does depends on the values."""

    def forward(self, values: Tensor) -> Tensor:
        return values if values.sum() > 0 else -values


def test_a_network_that_cannot_be_traced_says_why() -> None:
    with pytest.raises(UntracedError, match="cannot be traced"):
        find_blocks(Branching().eval(), 8)


@pytest.mark.parametrize(
    ("arch", "head", "size", "sentence"),
    [
        ("timm/deit_tiny_distilled_patch16_224", "classifier", 32, "does not end with one linear layer"),
        ("alexnet", "pooled", 16, "cannot take images of 16 pixels"),
    ],
)
def test_what_a_network_cannot_take_is_one_sentence(arch: str, head: str, size: int, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as failure:
        build_backbone(arch, head, 1, size)
    assert "\n" not in str(failure.value)


def test_tensors_that_a_pooled_head_does_not_use_are_named() -> None:
    modules = build_backbone("googlenet", "pooled", 1, 64)
    assert any(name.startswith("aux1.") for name in modules.unused)
    assert not any("aux1" in member for block in modules.blocks for member in block.members)


def test_without_timm_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone._of_library.cache_clear()  # what other tests have found
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install timm"):
        find_backbone("timm/resnet10t")
    with pytest.raises(UserError, match="pip install timm"):
        parser.parse(["--config", "quickstart", "--model.arch", "timm/resnet14t"])
