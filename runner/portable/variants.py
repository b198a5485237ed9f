"""The variants of an image that go through the backbone (its scales, and their mirror images), and how they are pooled.

The model receives the image at its largest scale. The smaller ones are made from it inside the model, so that one
tensor goes in wherever the model runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MOST_PIXELS = 10_000
"""Height and width of the largest scale."""


@dataclass(frozen=True)
class Variant:
    """A version of the image that the model receives."""

    size: int = 0
    """Height and width that it is resized to, in pixels; 0: as it is."""
    mirrored: bool = False

    def recipe(self) -> dict[str, Any]:
        """What distinguishes it from the image as it is."""
        return {
            **({"size": self.size} if self.size else {}),
            **({"mirrored": True} if self.mirrored else {}),
        }

    def __str__(self) -> str:
        size = [f"{self.size} px"] if self.size else []
        return ", ".join([*size, *["mirrored"] * self.mirrored])


@dataclass(frozen=True)
class VariantSpec:
    """Which variants there are, and which of their maps are pooled.

    Raises ValueError for scales that are no sizes of images.
    """

    scales: tuple[int, ...] = ()
    """Heights and widths in pixels; none: only the image as it is."""
    tta: str = "none"
    """none, flips, scales or flips+scales."""
    pooled_layers: tuple[str, ...] = ()
    """Names of the layers; none: only the last one before the pooling."""

    def __post_init__(self) -> None:
        if not all(type(size) is int and 1 <= size <= MOST_PIXELS for size in self.scales):
            raise ValueError(f"the scales are not whole numbers from 1 to {MOST_PIXELS}")

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> VariantSpec:
        """From a model's description, which may have other fields or lack these."""
        return cls(
            tuple(fields.get("scales", ())), fields.get("tta", "none"), tuple(fields.get("pooled_layers", ()))
        )

    @property
    def mirrors(self) -> bool:
        """Whether the maps of an image and of its mirror image are averaged."""
        return "flips" in self.tta

    @property
    def averages_scales(self) -> bool:
        """Whether the pooled values of the scales are averaged; otherwise they are stacked."""
        return "scales" in self.tta

    @property
    def stacked_scales(self) -> int:
        """How often a pooled map occurs among the features."""
        return 1 if self.averages_scales or not self.scales else len(self.scales)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """All variants, scale by scale, each before its mirror image."""
        largest = max(self.scales, default=0)
        sizes = [0 if size == largest else size for size in self.scales] or [0]
        return tuple(
            Variant(size, mirrored) for size in sizes for mirrored in [False, True][: 1 + self.mirrors]
        )


class Resize(nn.Module):
    """Square images or maps (n × c × s × s) → n × c × size × size, by bicubic interpolation with antialiasing.

    The same values as `torch.nn.functional.interpolate`, by two matrix products in float32 that every runtime computes
    alike.
    """

    matrix: Tensor

    def __init__(self, source: int, size: int) -> None:
        super().__init__()
        identity = torch.eye(source)[None, None]
        matrix = F.interpolate(identity, size=(size, source), mode="bicubic", antialias=True)
        self.register_buffer("matrix", matrix[0, 0], persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        with torch.autocast(values.device.type, enabled=False):
            resized = self.matrix @ values.float() @ self.matrix.T
        return resized.contiguous(memory_format=torch.channels_last)


def pool_variants(maps: Sequence[Tensor], spec: VariantSpec, pooling: Callable[[Tensor], Tensor]) -> Tensor:
    """The pooled values of one image's maps: n × values × h × w.

    The maps of an image and of its mirror image, turned back, are averaged before they are pooled. The pooled values of
    several layers are stacked, and those of several scales stacked or averaged.

    Args:
        maps: For each variant the maps of its layers (n × channels × h × w), variant by variant.
        spec: Which variants these are.
        pooling: The pooling layer.
    """
    layers = max(1, len(spec.pooled_layers))
    by_variant = [maps[start : start + layers] for start in range(0, len(maps), layers)]
    if spec.mirrors:
        pairs = zip(by_variant[::2], by_variant[1::2], strict=True)
        by_variant = [
            [(one + other.flip(-1)) / 2 for one, other in zip(plain, mirrored, strict=True)]
            for plain, mirrored in pairs
        ]
    scales = [torch.cat([pooling(each) for each in variant], dim=1) for variant in by_variant]
    return torch.stack(scales).mean(0) if spec.averages_scales else torch.cat(scales, dim=1)
