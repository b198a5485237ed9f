"""Builds backbones from networks of a library, whose blocks are found in their graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from .backbone import Backbone, BackboneModules, Block, Layout
from .graph import UntracedError, find_blocks, meta_parameters, output_shapes
from .head import Pool, bins, pooling

MOST_PREFIX_TOKENS = 8


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
    arch, usual = backbone.arch, backbone.preprocessing(None).crop
    try:
        network = _create(create, size, random_weights).eval()
        blocks = find_blocks(network)
        shapes = output_shapes(network, blocks, size)
    except UntracedError as error:
        raise ValueError(f"model.arch={arch} cannot be divided into blocks: {error}") from None
    except Exception as error:  # whatever the network raises
        raise ValueError(_refusal(arch, size, usual, error)) from None
    return modules_for_head(arch, network, blocks, shapes, head, pool)


def _refusal(arch: str, size: int, usual: int, error: Exception) -> str:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
    return f"{arch} cannot take images of {size} pixels ({reason}); its weights were trained with {usual}"


def _create(create: Callable[[int], nn.Module], size: int, random_weights: bool) -> nn.Module:
    if random_weights:
        return create(size)
    with meta_parameters():
        network = create(size)
    if any(buffer.is_meta for buffer in network.buffers()):  # computed where a parameter is: it must be real
        with torch.random.fork_rng(devices=[]):
            network = create(size)
    return network


def modules_for_head(
    arch: str,
    network: nn.Module,
    blocks: Sequence[Block],
    shapes: Sequence[torch.Size],
    head: str,
    pool: Pool,
) -> BackboneModules:
    """What a network and a head have in common.

    classifier: all but the last linear layer of the network. pooled and linear: the network up to its last map, and a
    pooling of it; where there are tokens, up to what its own last layer takes.

    Args:
        arch: Name of the architecture, for messages.
        network: The whole network.
        blocks: All its blocks.
        shapes: Of their outputs for two images.
        head: classifier, pooled or linear.
        pool: For a pooled or linear head on maps.

    Raises ValueError if the network has no such place for a head.
    """
    if _is_module(network, blocks[-1], nn.Identity) and _is_module(network, blocks[-2], nn.Linear):
        blocks, shapes = blocks[:-1], shapes[:-1]
    has_classifier = _is_module(network, blocks[-1], nn.Linear) or _is_module(
        network, blocks[-1], nn.Identity
    )
    body = list(blocks[:-1]) if has_classifier and len(shapes[-2]) == 2 else None
    layouts = _layouts(network, blocks[:-1], shapes[:-1])
    if not layouts:
        raise ValueError(f"{arch} has no feature maps that a head could be placed on")
    names = [block.name for block in blocks]
    last = names.index([*layouts][-1])
    layout = layouts[names[last]]
    own_pooling = head == "classifier" or layout.kind == "tokens"
    if own_pooling and body is not None:
        num_features = shapes[len(body) - 1][1]
        pool_name = names[last + 1]
    elif head == "classifier":
        raise ValueError(
            f"{arch} does not end with one linear layer that model.head=classifier could replace; set model.head=pooled"
        )
    else:
        body = list(blocks[: last + 1])
        if layout.kind == "channels_last":
            body.append(_step("channels_first", body, _ChannelsFirst()))
            layouts[body[-1].name] = Layout(layout.channels)
        module = _TokenPool(layout.prefix) if layout.kind == "tokens" else pooling(pool)
        body.append(_step("pooling", body, module))
        pool_name = body[-1].name
        num_features = layout.channels * (1 if layout.kind == "tokens" else bins(pool))
        if layout.kind != "tokens":
            body.append(_step("flatten", body, nn.Flatten(1)))
    replaced = _replaced(body, blocks, network)
    return BackboneModules(
        network,
        tuple(body),
        replaced,
        num_features,
        pool_name,
        _cam_layer(network, body, layouts),
        {name: each for name, each in layouts.items() if name in {block.name for block in body}},
        stores_maps=not own_pooling,
        unused=_prune(network, body, replaced),
    )


class _ChannelsFirst(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values.permute(0, 3, 1, 2)


class _TokenPool(nn.Module):
    """The class token; without one, the mean of the tokens."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, values: Tensor) -> Tensor:
        return values[:, 0] if self.prefix else values.mean(1)

    def extra_repr(self) -> str:
        return f"prefix={self.prefix}"


def _step(name: str, body: Sequence[Block], module: nn.Module) -> Block:
    """A block without weights that the network does not have."""
    while any(block.name == name for block in body):
        name += "_"
    return Block(name, (), lambda _network, values: cast(Tensor, module(values)), str(module))


def _is_module(network: nn.Module, block: Block, kind: type[nn.Module]) -> bool:
    return block.function is None and isinstance(network.get_submodule(block.name), kind)


def _layouts(network: nn.Module, blocks: Sequence[Block], shapes: Sequence[torch.Size]) -> dict[str, Layout]:
    """The layout of all blocks' outputs that have places in space, by name."""
    counts = [shape[1] for shape in shapes if len(shape) == 3]
    prefix = next((each for each in range(MOST_PREFIX_TOKENS) if counts and _is_square(counts[-1] - each)), 0)
    prefix = int(getattr(network, "num_prefix_tokens", prefix))
    layouts: dict[str, Layout] = {}
    for block, shape in zip(blocks, shapes, strict=True):
        if len(shape) == 4 and shape[2] == shape[3] > 1:
            layouts[block.name] = Layout(shape[1])
        elif len(shape) == 4 and shape[1] == shape[2] > 1:
            layouts[block.name] = Layout(shape[3], "channels_last")
        elif (
            len(shape) == 3
            and shape[1] > 1
            and shape[1] in (counts[-1], counts[-1] - prefix, counts[-1] + prefix)
        ):
            before = prefix if _is_square(shape[1] - prefix) and not _is_square(shape[1]) else 0
            if _is_square(shape[1] - before):
                layouts[block.name] = Layout(shape[2], "tokens", before)
    return layouts


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _cam_layer(network: nn.Module, body: Sequence[Block], layouts: dict[str, Layout]) -> str:
    """The last map; of tokens, what the last block with parts takes: a class token alone leaves that block."""
    spatial = [block for block in body if block.name in layouts]
    if layouts[spatial[-1].name].kind != "tokens":
        return spatial[-1].name
    composite = [
        index
        for index, block in enumerate(spatial)
        if any(True for name in block.members for _ in _children(network, name))
    ]
    return spatial[max(composite[-1] - 1, 0)].name if composite else spatial[-1].name


def _children(network: nn.Module, name: str) -> list[nn.Module]:
    """The parts of a module of a network; none of a parameter."""
    parent, _, last = name.rpartition(".")
    module = getattr(network.get_submodule(parent), last)
    return list(module.children()) if isinstance(module, nn.Module) else []


def _replaced(body: Sequence[Block], blocks: Sequence[Block], network: nn.Module) -> str:
    """The largest module around the network's own last layers that has none of the modules of `body`."""
    used = {member for block in body for member in block.members}
    others = [member for block in blocks for member in block.members if member not in used]
    if (last := next(reversed(others), None)) is None:  # a network without a classifier
        name = "head"
        while hasattr(network, name):
            name += "_"
        return name
    path = last.split(".")
    names = (".".join(path[: depth + 1]) for depth in range(len(path)))
    return next(
        name for name in names if not any(member == name or member.startswith(f"{name}.") for member in used)
    )


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
