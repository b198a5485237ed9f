"""What becomes a block of its own when a network is divided, and what stays one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runner.portable.graph import UntracedError, find_blocks, meta_parameters, output_shapes, run_block

SIZE = 8


class Residual(nn.Module):
    """Two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(values + self.norm(self.conv(values)))


class Chain(nn.Module):
    """A module that calls its children in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.ReLU()

    def forward(self, values: Tensor) -> Tensor:
        return self.second(self.first(values))


class DependsOnMode(Chain):
    """A chain that is another one in training."""

    def forward(self, values: Tensor) -> Tensor:
        return super().forward(values) if self.training else self.first(values)


class Network(nn.Module):
    """A network of parts and of what its forward pass does with them."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self._forward = forward
        self.stem = nn.Conv2d(3, 4, 1)
        for name, part in parts.items():
            self.add_module(name, part)
        self.head = nn.Linear(4, 5)

    def forward(self, values: Tensor) -> Any:
        return self._forward(self, values)


def pooled(network: Any, values: Tensor) -> Tensor:
    return network.head(values.mean((2, 3)))


def divide(network: nn.Module) -> dict[str, tuple[str, ...]]:
    """The members of a network's blocks by name, after checking that they compute what it does."""
    network.eval()
    blocks, found = find_blocks(network, SIZE)
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    values, shapes = images, []
    with torch.no_grad():
        for block in blocks:
            values = run_block(network, block, values)
            shapes.append(values.shape)
        assert torch.equal(values, network(images))
    assert output_shapes(network, blocks, SIZE) == found == shapes
    return {block.name: block.members for block in blocks}


def test_residual_blocks_stay_one_block_and_chains_do_not() -> None:
    stages = nn.Sequential(Residual(), nn.Sequential(Residual(), Chain()))
    network = Network(lambda self, x: pooled(self, self.stages(self.stem(x))), stages=stages)
    assert [*divide(network)] == [
        *("stem", "stages.0", "stages.1.0", "stages.1.1.first", "stages.1.1.second", "mean", "head")
    ]


def test_a_module_that_training_changes_stays_one_block() -> None:
    network = Network(lambda self, x: pooled(self, self.part(self.stem(x))), part=DependsOnMode())
    network.part.train()
    assert [*divide(network)] == ["stem", "part", "mean", "head"]


def test_finding_blocks_leaves_the_modes_of_modules() -> None:
    network = Network(lambda self, x: pooled(self, self.part(self.stem(x))), part=Chain()).eval()
    network.part.second.train()
    find_blocks(network, SIZE)
    assert [module.training for module in network.modules()].count(True) == 1
    assert network.part.second.training


def test_functions_between_modules_are_blocks_of_their_own() -> None:
    def forward(self: Any, values: Tensor) -> Tensor:
        values = torch.nn.functional.relu(self.stem(values), inplace=True)
        values = values.permute(0, 2, 3, 1).flatten(1, 2) * 2
        return self.head(values.mean(1))

    blocks = divide(Network(forward))
    assert [*blocks] == ["stem", "relu", "permute", "flatten", "mul", "mean", "head"]
    assert blocks["relu"] == ()


def test_a_skip_across_modules_makes_one_block_of_them() -> None:
    def forward(self: Any, values: Tensor) -> Tensor:
        values = self.stem(values)
        return pooled(self, self.second(self.first(values)) + values)

    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    blocks = divide(Network(forward, first=first, second=second))
    assert blocks == {"stem": ("stem",), "add": ("first", "second"), "mean": (), "head": ("head",)}


def test_a_module_that_is_called_twice_is_two_blocks() -> None:
    network = Network(lambda self, x: pooled(self, self.part(self.part(self.stem(x)))), part=Residual())
    assert divide(network) == {
        "stem": ("stem",),
        "part": ("part",),
        "part_1": ("part",),
        "mean": (),
        "head": ("head",),
    }


def test_parameters_of_the_network_itself_belong_to_the_block_that_uses_them() -> None:
    def forward(self: Any, values: Tensor) -> Tensor:
        tokens = self.stem(values).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(tokens.shape[0], -1, -1), tokens], 1) + self.position
        return self.head(self.part(tokens)[:, 0])

    network = Network(forward, part=nn.LayerNorm(4))
    network.token = nn.Parameter(torch.rand(1, 1, 4))
    network.position = nn.Parameter(torch.rand(1, SIZE**2 + 1, 4))
    blocks = divide(network)
    users = {
        name: [each for each, members in blocks.items() if name in members] for name in ("token", "position")
    }
    assert users == {"token": ["cat"], "position": ["add"]}


def test_constants_follow_the_model_but_are_not_stored() -> None:
    network = Network(lambda self, x: pooled(self, self.stem(x) + torch.tensor([0.5])))
    before = network.state_dict().keys()
    divide(network)
    assert network.state_dict().keys() == before
    assert [value.item() for value in network.buffers()] == [0.5]


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: (self.stem(x), x), "no single tensor"),
        (lambda self, x: list(self.stem(x).split(2, 1)), "cannot be traced"),
        (lambda self, x: self.stem(x).split(2, 1), "no tensor"),
    ],
)
def test_what_cannot_be_divided_says_why(forward: Callable[[Any, Tensor], Any], reason: str) -> None:
    with pytest.raises(UntracedError, match=reason):
        find_blocks(Network(forward).eval(), SIZE)


def test_parameters_are_created_without_memory_and_buffers_are_real() -> None:
    with meta_parameters():
        inside = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert all(parameter.is_meta for parameter in inside.parameters())
    assert not any(buffer.is_meta for buffer in inside.buffers())
    assert not nn.Linear(2, 2).weight.is_meta
