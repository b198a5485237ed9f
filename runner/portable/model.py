"""A backbone with a new head: what it computes, not how it is trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .backbone import BackboneModules
from .backbones import BACKBONES
from .head import HeadSpec, Pool, build_head


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

    Args:
        backbone: Its modules, from `build_backbone`; the model takes them over.
        head: From `build_head`.
        mean: Channel means (red, green, blue) on the scale 0 to 1.
        std: Channel standard deviations, likewise.
        mirrors: The map that is pooled is the mean of an image's map and its mirror image's, turned back.
    """

    def __init__(
        self,
        backbone: BackboneModules,
        head: nn.Sequential,
        mean: Sequence[float],
        std: Sequence[float],
        mirrors: bool = False,
    ) -> None:
        super().__init__()
        self.mirrors = mirrors
        self.normalize = Normalize(mean, std)
        for name, child in backbone.root.named_children():
            self.add_module(name, child)
        self.set_submodule(backbone.head, head)
        self.head_name = backbone.head
        self.cam_layer = backbone.cam_layer
        """The layer that Grad-CAM explains by default."""
        head_layers = [f"{backbone.head}.{name}" for name, _ in head.named_children()]
        self.layer_names = ["normalize", *backbone.blocks, *head_layers]
        """All layers in the order of the forward pass."""
        self.pooling_index = self.layer_names.index(backbone.pooling)
        self.head_index = self.layer_names.index(head_layers[0])
        """Index of the head's first layer."""
        self.index_layers()

    def index_layers(self) -> None:
        """Look the layers up by name. Call it again after a layer is replaced."""
        self._layers = [self.get_submodule(name) for name in self.layer_names]

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Every layer with its name, in the order of the forward pass."""
        return zip(self.layer_names, self._layers, strict=True)

    def forward(self, values: Tensor, start: int = 0) -> Tensor:
        """Logits: n × classes, float32.

        Args:
            values: Images (n × 3 × h × w, uint8), or the output of the layers before `start`.
            start: Index of the first layer to run.
        """
        return self.run(values, start, self.depth)

    def run(self, values: Tensor, start: int, stop: int) -> Tensor:
        """The output of layers `start` to `stop - 1`. The head computes in float32: rounded logits would tie.

        From layers in the middle on, mirror images are not known: what goes in stands for both.
        """
        if self.mirrors and start == 0 and stop >= self.pooling_index:
            plain, mirrored = (self._run(each, 0, self.pooling_index) for each in (values, values.flip(-1)))
            values, start = (plain + mirrored.flip(-1)) / 2, self.pooling_index
        return self._run(values, start, stop)

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
        """The backbone's layers whose output has a height and width."""
        return self.layer_names[1 : self.pooling_index + 1]


def build_backbone(arch: str, head: str, pool: Pool) -> BackboneModules:
    """The modules of a backbone on torch's meta device: without memory for their weights.

    Args:
        arch: Name of the architecture.
        head: classifier, pooled or linear.
        pool: The last feature map is averaged down to pool × pool, or to a pyramid of such sizes; not for classifier.

    Raises KeyError if there is no such architecture.
    """
    with torch.device("meta"):
        return BACKBONES[arch].build(head, pool)


def build_model(spec: dict[str, Any], classes: int, tensors: dict[str, Tensor]) -> LayeredModel:
    """A model in evaluation mode, without gradients.

    Args:
        spec: arch, normalization (mean, std) and the fields of `HeadSpec`.
        classes: The number of classes.
        tensors: The state dict; the model takes the tensors over without a copy.

    Raises KeyError, TypeError, ValueError or RuntimeError if spec and tensors do not fit together.
    """
    backbone = build_backbone(spec["arch"], spec["head"], spec["pool"])
    with torch.device("meta"):
        head = build_head(HeadSpec.of(spec), backbone.num_features, classes)
    normalization = spec["normalization"]
    mirrors = spec.get("tta", "none") == "flips"
    model = LayeredModel(backbone, head, normalization["mean"], normalization["std"], mirrors)
    model.load_state_dict(tensors, strict=True, assign=True)
    return model.requires_grad_(False).to(memory_format=torch.channels_last).eval()


def supported_precision(precision: str, device: torch.device) -> str:
    """`precision` (no, fp16, bf16), or "no" on a CPU that has no fast arithmetic for it."""
    if device.type == "cuda":
        return precision
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return precision if precision == "bf16" and fast else "no"


def is_within(layer: str, module: str) -> bool:
    """Whether the layer of this name is the module of that name, or a part of it."""
    return layer == module or layer.startswith(f"{module}.")
