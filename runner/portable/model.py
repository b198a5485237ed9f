"""A backbone with a new head: what it computes, not how it is trained."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .backbone import BackboneModules, Block, Layout
from .backbones import find_backbone
from .head import HeadSpec, Pool, bins, build_head
from .variants import Resize, Variant, VariantSpec, pool_variants


class Normalize(nn.Module):
    """uint8 images (n × 3 × h × w) → (value / 255 - mean) / std as float32, channels last."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(tuple(mean)).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(tuple(std)).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        values = images.contiguous(memory_format=torch.channels_last).float()
        return (values / 255 - self.mean) / self.std


class LayeredModel(nn.Module):
    """Layers that run one after another: normalize, the blocks of a backbone, the layers of the head.

    Of several variants of an image, each goes through the blocks before the pooling by itself.

    Args:
        backbone: Its modules, from `build_backbone`; the model takes them over.
        head: From `build_head`.
        mean: Channel means (red, green, blue) on the scale 0 to 1.
        std: Channel standard deviations, likewise.
        variants: The variants of an image.

    Raises ValueError for a pooled layer that there is not before the pooling.
    """

    def __init__(
        self,
        backbone: BackboneModules,
        head: nn.Sequential,
        mean: Sequence[float],
        std: Sequence[float],
        variants: VariantSpec | None = None,
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        _move_members(backbone.root, self)
        self.set_submodule(backbone.head, head)
        self.head_name = backbone.head
        head_layers = [f"{backbone.head}.{name}" for name, _ in head.named_children()]
        self.blocks_in_order = (*Block.of("normalize"), *backbone.blocks, *Block.of(*head_layers))
        self.layer_names = [block.name for block in self.blocks_in_order]
        """All layers in the order of the forward pass."""
        self.layouts = backbone.layouts
        """Of the layers before the pooling whose output has places in space, by name."""
        self.stores_maps = backbone.stores_maps
        self.note, self.weights_prefix = backbone.note, backbone.prefix
        self.unused = backbone.unused
        """Names of tensors that the architecture has and the model does not use."""
        self.pooling_index = self.layer_names.index(backbone.pooling)
        self.head_index = self.layer_names.index(head_layers[0])
        """Index of the head's first layer."""
        self.variant_spec = variants or VariantSpec()
        self.variants = self.variant_spec.variants
        """The variants of an image that go through the backbone."""
        self.pooled_indices = pooled_indices(
            self.layer_names[: self.pooling_index], self.variant_spec, backbone.layouts
        )
        """Indices of the layers whose output is pooled."""
        self.pools_last_only = len(self.variants) == 1 and self.pooled_indices == [self.pooling_index - 1]
        """Whether only one map is pooled, that of the last layer before the pooling."""
        last = self.pooled_indices[-1]
        self.cam_layer = (
            backbone.cam_layer
            if backbone.cam_layer in self.layer_names[: last + 1]
            else self.layer_names[last]
        )
        """The layer that Grad-CAM explains by default."""
        largest = max(self.variant_spec.scales, default=0)
        sizes = {variant.size for variant in self.variants if variant.size}
        self.resizes = nn.ModuleDict({str(size): Resize(largest, size) for size in sorted(sizes)})
        self.index_layers()

    def index_layers(self) -> None:
        """Look the layers up by name. Call it again after a layer is replaced."""
        self._layers: list[Callable[[Tensor], Tensor]] = [
            functools.partial(block.function, self) if block.function else self.get_submodule(block.name)
            for block in self.blocks_in_order
        ]

    def named_layers(self) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        """Every layer with its name, in the order of the forward pass."""
        return zip(self.layer_names, self._layers, strict=True)

    def layer_modules(self, index: int) -> list[nn.Module]:
        """The modules that a layer runs, without their parts."""
        found = (self.member(name) for name in self.blocks_in_order[index].members)
        return [each for each in found if isinstance(each, nn.Module)]

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """Parameters and buffers of a layer, by name: those that the state dict holds."""
        tensors: dict[str, Tensor] = {}
        for name in self.blocks_in_order[index].members:
            member = self.member(name)
            if isinstance(member, nn.Module):
                tensors |= member.state_dict(prefix=f"{name}.", keep_vars=True)
            elif isinstance(member, Tensor):
                tensors[name] = member
        return tensors

    def layer_parameters(self, index: int) -> list[nn.Parameter]:
        """The parameters of a layer."""
        return [each for each in self.layer_tensors(index).values() if isinstance(each, nn.Parameter)]

    def layer_text(self, index: int) -> str:
        """What distinguishes what a layer computes from others, apart from its weights."""
        block = self.blocks_in_order[index]
        return "\n".join([*[block.code] * bool(block.code), *map(str, self.layer_modules(index))])

    def member(self, name: str) -> object:
        """A module, parameter or buffer by its dotted name."""
        parent, _, last = name.rpartition(".")
        return getattr(self.get_submodule(parent), last)

    def forward(self, values: Tensor, start: int = 0) -> Tensor:
        """Logits: n × classes, float32.

        Args:
            values: Images (n × 3 × h × w, uint8), or the output of the layers before `start`.
            start: Index of the first layer to run.
        """
        return self.run(values, start, self.depth)

    def run(self, values: Tensor | Sequence[Tensor], start: int, stop: int) -> Tensor:
        """The output of layers `start` to `stop - 1`. The head computes in float32: rounded logits would tie.

        Args:
            values: What goes into layer `start`. Where several maps are pooled and `start` is the pooling: these maps,
                as `maps` returns them. A layer between normalization and pooling knows only one variant: then `stop` is
                at most the index of the pooling.
            start: Index of the first layer.
            stop: Index after the last layer.
        """
        if not isinstance(values, Tensor):
            pooled = pool_variants(values, self.variant_spec, self._layers[self.pooling_index])
            return self._run(pooled, self.pooling_index + 1, stop)
        if start <= 1 and stop > self.pooling_index and not self.pools_last_only:
            maps = self.maps(self._run(values, start, 1))
            return self.run(maps, self.pooling_index, stop)
        return self._run(values, start, stop)

    def maps(self, normalized: Tensor, tap: Tap | None = None) -> list[Tensor]:
        """What is pooled of normalized images: for each variant the outputs of the pooled layers.

        Args:
            normalized: Output of the first layer.
            tap: Called with the output of each layer; the next layer gets what it returns.
        """
        maps = []
        for number, variant in enumerate(self.variants):
            values = self.variant(normalized, variant)
            for index in range(1, self.pooled_indices[-1] + 1):
                values = self._layers[index](values)
                values = tap(values, number, index) if tap else values
                if index in self.pooled_indices:
                    maps.append(values.clone())  # the next layer may change it in place
        return maps

    def variant(self, normalized: Tensor, variant: Variant) -> Tensor:
        """A variant of normalized images (n × 3 × h × w)."""
        if variant.size:
            normalized = self.resizes[str(variant.size)](normalized)
        return normalized.flip(-1) if variant.mirrored else normalized

    def variant_map(self, images: Tensor, variant: Variant, stop: int) -> Tensor:
        """The output of layer `stop - 1`, before the pooling, for a variant of images (n × 3 × h × w, uint8)."""
        return self._run(self.variant(self._run(images, 0, 1), variant), 1, stop)

    def _run(self, values: Tensor, start: int, stop: int) -> Tensor:
        for layer in self._layers[start : min(stop, self.head_index)]:
            values = layer(values)
        if stop > self.head_index:
            with torch.autocast(values.device.type, enabled=False):
                values = values.float()
                for layer in self._layers[max(start, self.head_index) : stop]:
                    values = layer(values)
        return values

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self._layers)

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer that every head ends with."""
        layer = self._layers[-1]
        assert isinstance(layer, nn.Linear)  # noqa: S101 (for types)
        return layer

    @property
    def spatial_layers(self) -> list[str]:
        """The backbone's layers whose output has places in space; the pooling of a map is the last one."""
        last = self.pooled_indices[-1]
        names = [name for name in self.layer_names[1 : last + 1] if name in self.layouts]
        return [*names, self.layer_names[self.pooling_index]] if self.stores_maps else names


Tap: TypeAlias = Callable[[Tensor, int, int], Tensor]
"""A layer's output, the number of its variant, the layer's index → what goes on."""


def _move_members(root: nn.Module, model: nn.Module) -> None:
    """Make a network's children, parameters and buffers the model's. Raises ValueError if the model uses a name."""
    members = [*root._modules, *root._parameters, *root._buffers]
    if clash := next((name for name in members if hasattr(model, name)), None):
        raise ValueError(f"its module {clash!r} has a name that the runner uses itself")
    for name, child in root.named_children():
        model.add_module(name, child)
    for name, parameter in root.named_parameters(recurse=False):
        model.register_parameter(name, parameter)
    for name, buffer in root.named_buffers(recurse=False):
        model.register_buffer(name, buffer, name not in root._non_persistent_buffers_set)


def pooled_indices(
    layers: Sequence[str], spec: VariantSpec, layouts: Mapping[str, Layout] | None = None
) -> list[int]:
    """Indices of the layers whose output is pooled, in the order of the forward pass.

    Args:
        layers: Names of the layers before the pooling.
        spec: Names the layers, or none for the last one.
        layouts: Of their outputs; None: all are maps.

    Raises ValueError if there is no such layer, or if maps are to be pooled of tokens.
    """
    for name in spec.pooled_layers:
        if name not in layers[1:]:
            raise ValueError(
                f"{name!r} is no layer before the pooling; there are {layers[1]} to {layers[-1]}"
            )
    indices = sorted(map(layers.index, set(spec.pooled_layers))) or [len(layers) - 1]
    if len(spec.variants) > 1 or spec.pooled_layers:
        for name in (layers[index] for index in indices):
            if layouts is not None and getattr(layouts.get(name), "kind", "") != "channels_first":
                raise ValueError(f"the output of {name} is no feature map that could be pooled")
    return indices


def pooled_features(backbone: BackboneModules, head: HeadSpec, variants: VariantSpec) -> list[int]:
    """Values per image that reach the head, of each map that is pooled.

    Raises ValueError if one of the layers to pool does not exist.
    """
    features = [backbone.num_features]
    if variants.pooled_layers:
        names = ["normalize", *(block.name for block in backbone.blocks)]
        layers = names[: names.index(backbone.pooling)]
        wanted = pooled_indices(layers, variants, backbone.layouts)
        features = [backbone.layouts[layers[index]].channels * bins(head.pool) for index in wanted]
    return features * variants.stacked_scales


def head_spec(fields: Mapping[str, Any], backbone: BackboneModules) -> HeadSpec:
    """The head in a model's description. Features that are not pooled from a map are one level of a pyramid.

    Raises KeyError if a field is missing.
    """
    spec = HeadSpec.of(fields)
    return spec if backbone.stores_maps else dataclasses.replace(spec, pool=1)


def build_backbone(
    arch: str, head: str, pool: Pool, size: int = 224, random_weights: bool = False
) -> BackboneModules:
    """The modules of a backbone.

    Args:
        arch: Name of the architecture.
        head: classifier, pooled or linear.
        pool: The last feature map is averaged down to pool × pool, or to a pyramid of such sizes; not for classifier.
        size: Height and width of the images.
        random_weights: Draw the weights from torch's global generator. False: they are on torch's meta device, and take
            no memory.

    Raises ValueError if there is no such architecture, or if it cannot take such images or such a head.
    """
    return find_backbone(arch).build(head, pool, size, random_weights)


def build_model(spec: dict[str, Any], classes: int, tensors: dict[str, Tensor]) -> LayeredModel:
    """A model in evaluation mode, without gradients.

    Args:
        spec: arch, normalization (mean, std) and the fields of `HeadSpec` and `VariantSpec`.
        classes: The number of classes.
        tensors: The state dict; the model takes the tensors over without a copy.

    Raises KeyError, TypeError, ValueError or RuntimeError if spec and tensors do not fit together.
    """
    backbone = build_backbone(spec["arch"], spec["head"], spec["pool"], spec.get("input_size", 224))
    with torch.device("meta"):
        description, variants = head_spec(spec, backbone), VariantSpec.of(spec)
        head = build_head(description, pooled_features(backbone, description, variants), classes)
    normalization = spec["normalization"]
    model = LayeredModel(backbone, head, normalization["mean"], normalization["std"], variants)
    _check_types(model, tensors)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.requires_grad_(False).to(memory_format=torch.channels_last).eval()


def _check_types(model: LayeredModel, tensors: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a tensor has another type than the model's, or indices are not the network's own."""
    for name, value in model.state_dict().items():
        if (given := tensors.get(name)) is None:
            continue
        if given.dtype != value.dtype:
            raise ValueError(f"{name} is {given.dtype}, not {value.dtype}".replace("torch.", ""))
        is_index = not value.is_floating_point() and not name.endswith("num_batches_tracked")
        if is_index and not value.is_meta and not torch.equal(given.cpu(), value):
            raise ValueError(f"{name} holds other indices than the network's")


def supported_precision(precision: str, device: torch.device) -> str:
    """`precision` (no, fp16, bf16), or "no" on a CPU that has no fast arithmetic for it."""
    if device.type == "cuda":
        return precision
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision if precision == "bf16" and fast else "no"


def is_within(layer: str, module: str) -> bool:
    """Whether the layer of this name is the module of that name, or a part of it."""
    return layer == module or layer.startswith(f"{module}.")
