"""Builds backbones from networks of a library, whose blocks are found in their graph."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from .backbone import Backbone, BackboneModules, Block, Layout
from .division import WHOLE, Division, Whole, divide
from .graph import UntracedError, first_line, meta_parameters
from .head import Pool, bins, pooling

MAX_PREFIX_TOKENS = 8


def trace_backbone(
    backbone: Backbone,
    create: Callable[[int], nn.Module],
    head: str,
    pool: Pool,
    size: int,
    random_weights: bool,
) -> BackboneModules:
    """`Backbone.build` for a network of a library.

    Args:
        backbone: For messages.
        create: Creates the network with its own classifier, for images of a height and width.
        head: As the other arguments, of `Backbone.build`.

    Raises ValueError if the network cannot take such images or such a head.
    """
    arch = backbone.arch
    try:
        network = _create(create, size, random_weights).eval()
        division = divide(backbone, network, size)
    except UntracedError as error:
        raise ValueError(f"{arch} cannot be divided into blocks: {error}") from None
    except Exception as error:  # whatever the network raises
        usual, reason = backbone.preprocessing(None).crop, first_line(error)
        raise ValueError(
            f"{arch} cannot take images of {size} pixels ({reason}); its weights were trained with {usual}"
        ) from None
    if division.note:
        network = Whole(network)
    traced = _Traced(arch, network, division)
    body = traced.body(head, pool)
    replaced = traced.replaced(body.blocks)
    return BackboneModules(
        network,
        tuple(body.blocks),
        replaced,
        body.num_features,
        body.pooling,
        traced.cam_layer(body.blocks),
        {block.name: traced.layouts[block.name] for block in body.blocks if block.name in traced.layouts},
        stores_maps=body.pools_maps,
        unused=(*_prune(network, body.blocks, replaced), *getattr(network, "dropped", ())),
        prefix=f"{WHOLE}." if division.note else "",
        note=division.note,
    )


def _create(create: Callable[[int], nn.Module], size: int, random_weights: bool) -> nn.Module:
    if random_weights:
        return create(size)
    # Some networks compute buffers when they are built, where their parameters are, or read parameters.
    with suppress(NotImplementedError, RuntimeError), meta_parameters():
        network = create(size)
        if not any(buffer.is_meta for buffer in network.buffers()):
            return network
    with torch.random.fork_rng(devices=[]):
        return create(size)


@dataclass
class _HeadlessNetwork:
    """What a head is placed on."""

    blocks: list[Block]
    num_features: int
    pooling: str
    """Name of the block after the last one with places in space."""
    pools_maps: bool = False
    """Whether the pooling is the head's."""


class _Traced:
    """A network whose blocks and the shapes of their outputs are known.

    Raises ValueError if it has no feature maps or tokens.
    """

    def __init__(self, arch: str, network: nn.Module, division: Division) -> None:
        self.arch = arch
        self.network = network
        blocks, shapes = division.blocks, division.shapes
        if len(blocks) > 1 and self._is(blocks[-1], nn.Identity) and self._is(blocks[-2], nn.Linear):
            blocks, shapes = blocks[:-1], shapes[:-1]
        self.blocks, self.shapes = list(blocks), list(shapes)
        self.is_whole = bool(division.note)
        """Whether it is one block: after it, places other than the class token would have no influence."""
        self.layouts = _layouts(network, blocks, division.usual_shapes)
        if not self.layouts:
            raise ValueError(f"{arch} has no feature maps that a head could be placed on")

    def body(self, head: str, pool: Pool) -> _HeadlessNetwork:
        """The blocks below a head.

        classifier: all but the network's last linear layer. pooled and linear: up to the last map, and a pooling of it;
        where there are tokens, or maps only at the beginning, up to what the network's last layer takes.

        Args:
            head: classifier, pooled or linear.
            pool: For a pooled or linear head on maps.

        Raises ValueError if the network has no such place for a head.
        """
        last = self._last_map()
        layout = self.layouts[self.blocks[last].name]
        ends_linear = self._is(self.blocks[-1], nn.Linear) or self._is(self.blocks[-1], nn.Identity)
        is_early = self._weighted(self.blocks[last + 1 : -1]) > self._weighted(self.blocks[: last + 1])
        own_features = head == "classifier" or layout.kind == "tokens" or is_early
        if own_features and ends_linear and len(self.shapes[-2]) == 2:
            return _HeadlessNetwork(self.blocks[:-1], self.shapes[-2][1], self.blocks[last + 1].name)
        if head == "classifier":
            raise ValueError(
                f"{self.arch} does not end with one linear layer that model.head=classifier could replace;"
                " set model.head=pooled"
            )
        if is_early:
            raise ValueError(f"{self.arch} has no feature maps near its end that a head could be placed on")
        blocks = self.blocks[: last + 1]
        if layout.kind == "tokens":
            blocks.append(_step("pooling", blocks, _TokenPool(layout.prefix, self.is_whole)))
            return _HeadlessNetwork(blocks, layout.channels, blocks[-1].name)
        if layout.kind == "channels_last":
            blocks.append(_step("channels_first", blocks, _ChannelsFirst()))
            self.layouts[blocks[-1].name] = Layout(layout.channels)
        blocks.append(_step("pooling", blocks, pooling(pool)))
        blocks.append(_step("flatten", blocks, nn.Flatten(1)))
        return _HeadlessNetwork(blocks, layout.channels * bins(pool), blocks[-2].name, pools_maps=True)

    def _last_map(self) -> int:
        """Index of the last block with a map or tokens; the classes' own maps, of a convolution, do not count."""
        last = max(index for index, block in enumerate(self.blocks) if block.name in self.layouts)
        for index in range(len(self.blocks)):
            if self._is(self.blocks[index], nn.Conv2d) and self._counts_classes(index):
                below = [i for i in range(index) if not self._is(self.blocks[i], nn.Dropout)]
                return max((i for i in below if self.blocks[i].name in self.layouts), default=last)
        return last

    def _counts_classes(self, index: int) -> bool:
        """Whether a block and all that follow it have as many channels as there are classes."""
        return {shape[1] for shape in self.shapes[index:]} == {self.shapes[-1][1]}

    def cam_layer(self, body: Sequence[Block]) -> str:
        """The last map that is more than a pixel; of tokens, what the last block with parts takes.

        A class token alone leaves the last block.
        """
        spatial = [block for block in body if block.name in self.layouts]
        if self.layouts[spatial[-1].name].kind != "tokens":
            extended = [block for block in spatial if self._side(block) > 1]
            return (extended or spatial)[-1].name
        composite = [index for index, block in enumerate(spatial) if any(map(self._parts, block.members))]
        return spatial[max(composite[-1] - 1, 0)].name if composite else spatial[-1].name

    def _side(self, block: Block) -> int:
        """Height of a block's map."""
        names = [each.name for each in self.blocks]
        if block.name not in names:  # the channels-first copy of the last map
            return self._side(self.blocks[max(map(names.index, self.layouts.keys() & set(names)))])
        shape = self.shapes[names.index(block.name)]
        return shape[2] if self.layouts[block.name].kind == "channels_first" else shape[1]

    def replaced(self, body: Sequence[Block]) -> str:
        """Name of the largest module around the network's own last layer that has none of the modules of `body`."""
        used = {member for block in body for member in block.members}
        others = [member for block in self.blocks for member in block.members if member not in used]
        if not others:  # a network without a classifier
            name = "head"
            while hasattr(self.network, name):
                name += "_"
            return name
        path = others[-1].split(".")
        names = (".".join(path[: depth + 1]) for depth in range(len(path)))
        return next(name for name in names if not any(f"{each}.".startswith(f"{name}.") for each in used))

    def _weighted(self, blocks: Sequence[Block]) -> int:
        """The number of modules with weights of their own in blocks."""
        owners = {name.rpartition(".")[0] for name, _ in self.network.named_parameters()}
        members = [f"{member}." for block in blocks for member in block.members]
        return sum(any(f"{owner}.".startswith(member) for member in members) for owner in owners)

    def _is(self, block: Block, kind: type[nn.Module]) -> bool:
        return block.function is None and isinstance(self.network.get_submodule(block.name), kind)

    def _parts(self, member: str) -> list[nn.Module]:
        """The children of a module of the network; none of a parameter."""
        parent, _, last = member.rpartition(".")
        module = getattr(self.network.get_submodule(parent), last)
        return list(module.children()) if isinstance(module, nn.Module) else []


class _ChannelsFirst(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2)


class _TokenPool(nn.Module):
    """The class token; without one, or on request, the mean of the image's tokens."""

    def __init__(self, prefix: int, averages: bool) -> None:
        super().__init__()
        self.prefix = prefix
        self.averages = averages or not prefix

    def forward(self, values: Tensor) -> Tensor:
        return values[:, self.prefix :].mean(1) if self.averages else values[:, 0]

    def extra_repr(self) -> str:
        return f"prefix={self.prefix}, averages={self.averages}"


def _step(name: str, blocks: Sequence[Block], module: nn.Module) -> Block:
    """A further block, without weights, that the network does not have."""
    while any(block.name == name for block in blocks):
        name += "_"
    return Block(name, (), functools.partial(_run_module, module), str(module))


def _run_module(module: nn.Module, _network: nn.Module, values: Tensor) -> Tensor:
    return cast(Tensor, module(values))


def _layouts(network: nn.Module, blocks: Sequence[Block], shapes: Sequence[torch.Size]) -> dict[str, Layout]:
    """The layout of all blocks' outputs that have places in space, by name."""
    counts = [shape[1] for shape in shapes if len(shape) == 3]
    prefix = next((each for each in range(MAX_PREFIX_TOKENS) if counts and _is_square(counts[-1] - each)), 0)
    prefix = int(getattr(network, "num_prefix_tokens", prefix))
    # Of the last tokens; 4 of an image and 5 others are 9, a square, too.
    places = (
        next((each for each in (counts[-1] - prefix, counts[-1]) if _is_square(each)), 0) if counts else 0
    )
    layouts: dict[str, Layout] = {}
    for block, shape in zip(blocks, shapes, strict=False):
        if len(shape) == 4 and shape[2] == shape[3] > 1:
            layouts[block.name] = Layout(shape[1])
        elif len(shape) == 4 and shape[1] == shape[2] > 1:
            layouts[block.name] = Layout(shape[3], "channels_last")
        elif len(shape) == 3 and places and shape[1] > 1 and shape[1] - places in (0, prefix):
            layouts[block.name] = Layout(shape[2], "tokens", shape[1] - places)
    return layouts


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _prune(network: nn.Module, body: Sequence[Block], replaced: str) -> tuple[str, ...]:
    """Remove what `body` does not use from a network. Returns the names of the tensors that are gone."""
    used = {member for block in body for member in block.members} | {replaced}
    before = network.state_dict().keys()
    stored = {name.rsplit(".", depth)[0] for name in before for depth in range(name.count(".") + 1)}

    def prune(module: nn.Module, prefix: str) -> None:
        for members in (module._modules, module._parameters, module._buffers):
            for name, member in list(members.items()):
                path = f"{prefix}{name}"
                if path in used or path not in stored:
                    continue
                if isinstance(member, nn.Module) and any(each.startswith(f"{path}.") for each in used):
                    prune(member, f"{path}.")
                else:
                    del members[name]

    prune(network, "")
    return tuple(before - network.state_dict().keys())
