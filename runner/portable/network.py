"""torchvision's VGG with a new head: what it computes, not how it is trained.

Layers keep torchvision's names, so that its weights fit. The model takes uint8 images and normalizes them itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

CONVOLUTION_CHANNELS = 512
"""Channels of the last convolution of every VGG (Simonyan & Zisserman 2014, table 1)."""
CLASSIFIER_WIDTH = 4096
"""Outputs of the layers before the last one of torchvision's VGG classifier (same table)."""


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


class VGG(nn.Module):
    """normalize → features → avgpool → flatten → classifier, which ends in the head.

    Layers before the head have no memory yet: they are on torch's meta device.

    Args:
        arch: torchvision's name of the VGG.
        head_kind: "classifier": the head replaces classifier[6]; "pooled": it follows the pooled convolutions.
        pool: With a pooled head, the convolutions' output is pooled to pool × pool.
        head: From `build_head`.
        mean: Channel means (red, green, blue) on the scale 0 to 1.
        std: Channel standard deviations, likewise.
    """

    def __init__(
        self,
        arch: str,
        head_kind: str,
        pool: int,
        head: nn.Sequential,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        with torch.device("meta"):
            base = torchvision.models.get_model(arch, weights=None)
        self.normalize = Normalize(mean, std)
        self.features = cast(nn.Sequential, base.features)
        self.flatten = nn.Flatten(1)
        if head_kind == "classifier":
            self.avgpool = base.avgpool
            self.classifier = cast(nn.Sequential, base.classifier)
            self.classifier[6] = head
            self.head_name = "classifier.6"
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(pool)
            self.classifier = head
            self.head_name = "classifier"
        self.index_layers()

    def index_layers(self) -> None:
        """List the layers in the order of the forward pass. Call it again after a layer is replaced."""
        self.layer_names = [name for name, _ in self.layers()]
        self._layers = [layer for _, layer in self.layers()]
        self._head = next(
            index for index, name in enumerate(self.layer_names) if is_within(name, self.head_name)
        )

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Every layer with its name, in the order of the forward pass."""
        for name in ("normalize", "features", "avgpool", "flatten", "classifier"):
            yield from _leaves(name, getattr(self, name))

    def forward(self, values: Tensor, start: int = 0) -> Tensor:
        """Logits: n × classes, float32.

        Args:
            values: Images (n × 3 × h × w, uint8), or the output of the layers before `start`.
            start: Index of the first layer to run.
        """
        return self.run(values, start, self.depth)

    def run(self, values: Tensor, start: int, stop: int) -> Tensor:
        """The output of layers `start` to `stop - 1`. The head computes in float32: rounded logits would tie."""
        for layer in self._layers[start : min(stop, self._head)]:
            values = layer(values)
        if stop > self._head:
            with torch.autocast(values.device.type, enabled=False):
                values = values.float()
                for layer in self._layers[max(start, self._head) : stop]:
                    values = layer(values)
        return values

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self._layers)


def build_head(kind: str, pool: int, width: int, dropout: float, classes: int) -> nn.Sequential:
    """Linear, ReLU, dropout, linear; a pooled head starts with one more dropout.

    Args:
        kind: classifier or pooled.
        pool: A pooled head takes 512 × pool × pool inputs.
        width: Outputs of the first linear layer.
        dropout: Probability of each dropout layer.
        classes: The number of classes.
    """
    inputs = CLASSIFIER_WIDTH if kind == "classifier" else CONVOLUTION_CHANNELS * pool**2
    layers: list[nn.Module] = [
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, classes),
    ]
    if kind == "pooled":
        layers = [nn.Dropout(dropout), *layers]
    return nn.Sequential(*layers)


def build_model(architecture: dict[str, Any], classes: int, tensors: dict[str, Tensor]) -> VGG:
    """A model in evaluation mode, without gradients.

    Args:
        architecture: arch, head, pool, width, dropout and normalization (mean, std).
        classes: The number of classes.
        tensors: The state dict; the model takes the tensors over without a copy.

    Raises KeyError, TypeError, ValueError or RuntimeError if architecture and tensors do not fit together.
    """
    kind, pool = architecture["head"], architecture["pool"]
    with torch.device("meta"):
        head = build_head(kind, pool, architecture["width"], architecture["dropout"], classes)
    normalization = architecture["normalization"]
    model = VGG(architecture["arch"], kind, pool, head, normalization["mean"], normalization["std"])
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


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        for child, layer in module.named_children():
            yield from _leaves(f"{name}.{child}", layer)
    else:
        yield name, module
