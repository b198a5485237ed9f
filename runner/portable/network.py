"""torchvision's VGG with a new head: what it computes. How it trains is no concern of this file.

Layers bear torchvision's names, so that its weights fit. The network takes uint8 images and normalises them itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

CONVOLUTION_CHANNELS = 512
"""Channels of the last convolution of every VGG (Simonyan & Zisserman 2014, table 1)."""


class Normalise(nn.Module):
    """uint8 images (n × 3 × h × w, 0 to 255) → (value / 255 - mean) / std, float32, channels last."""

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
    """normalise → features → avgpool → flatten → classifier, whose last part is the head.

    Args:
        arch: torchvision's name of the VGG.
        kind: report: the head takes the place of classifier[6]; pooled: it follows the pooled convolutions.
        pool: A pooled head sees pool × pool of them.
        head: The head, as `build_head` makes it.
        mean: Of red, green and blue, on the scale 0 to 1.
        std: Likewise.

    What lies in front of the head has no memory yet (it is on torch's meta device).
    """

    def __init__(
        self,
        arch: str,
        kind: str,
        pool: int,
        head: nn.Sequential,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        with torch.device("meta"):
            base = torchvision.models.get_model(arch, weights=None)
        self.normalise = Normalise(mean, std)
        self.features = cast(nn.Sequential, base.features)
        self.flatten = nn.Flatten(1)
        if kind in ("classifier", "report"):  # report: its name in models of before
            self.avgpool = base.avgpool
            self.classifier = cast(nn.Sequential, base.classifier)
            self.classifier[6] = head
            self.head_name = "classifier.6"
        else:
            self.avgpool = nn.AdaptiveAvgPool2d(pool)
            self.classifier = head
            self.head_name = "classifier"
        self._index()

    def _index(self) -> None:
        """Line the layers up; to be called again where one of them was replaced."""
        self._names = [name for name, _ in self.layers()]
        self._layers = [layer for _, layer in self.layers()]
        self._head = next(place for place, name in enumerate(self._names) if within(name, self.head_name))

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Every layer with its name, in the order of the forward pass."""
        for name in ("normalise", "features", "avgpool", "flatten", "classifier"):
            yield from _leaves(name, getattr(self, name))

    def forward(self, values: Tensor, start: int = 0) -> Tensor:
        """Logits: n × classes, float32.

        Args:
            values: Images (n × 3 × h × w, uint8), or what the layers before `start` made of them.
            start: The layer to begin with.
        """
        return self.run(values, start, self.depth)

    def run(self, values: Tensor, start: int, stop: int) -> Tensor:
        """Layers `start` up to `stop`. The head computes in float32: rounded logits would tie."""
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

    def name_of(self, place: int) -> str:
        """The name of a layer, by its place in the forward pass."""
        return self._names[place]


def build_head(kind: str, pool: int, width: int, dropout: float, classes: int) -> nn.Sequential:
    """The report's head; in front of it, on pooled convolutions, one more dropout."""
    inputs = 4096 if kind in ("classifier", "report") else CONVOLUTION_CHANNELS * pool**2
    layers: list[nn.Module] = [
        nn.Linear(inputs, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, classes),
    ]
    if kind == "pooled":
        layers = [nn.Dropout(dropout), *layers]
    return nn.Sequential(*layers)


def build(about: dict[str, Any], classes: int, state: dict[str, Tensor]) -> VGG:
    """A network in evaluation mode from its description and tensors.

    Args:
        about: arch, head, pool, width, dropout and normalisation (mean, std).
        classes: Their number.
        state: Tensors by name, which become the network's own.

    Raises KeyError, TypeError, ValueError or RuntimeError where description and tensors do not fit each other.
    """
    with torch.device("meta"):
        head = build_head(about["head"], about["pool"], about["width"], about["dropout"], classes)
    normalisation = about["normalisation"]
    network = VGG(
        about["arch"], about["head"], about["pool"], head, normalisation["mean"], normalisation["std"]
    )
    network.load_state_dict(state, strict=True, assign=True)
    return network.requires_grad_(False).to(memory_format=torch.channels_last).eval()


def precision(wanted: str, device: torch.device) -> str:
    """The precision (no, fp16, bf16) to compute in on a device: float32 where it is slow at the one wanted."""
    if device.type == "cuda":
        return wanted
    fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return wanted if wanted == "bf16" and fast else "no"


def within(name: str, module: str) -> bool:
    """Whether a layer is a module, or lies in it."""
    return name == module or name.startswith(f"{module}.")


def _leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if isinstance(module, nn.Sequential):
        for child, layer in module.named_children():
            yield from _leaves(f"{name}.{child}", layer)
    else:
        yield name, module
