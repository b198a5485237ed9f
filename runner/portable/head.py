"""The head of a model: what it computes of the backbone's features, not how it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Pool = int | Sequence[int]
"""Output size of an average pooling, or the sizes of a pyramid of them."""
OFFSET = 1e-5
"""Of a power near 0, where the derivative of a root is infinite: there it would multiply errors of rounding."""


class SignedPower(nn.Module):
    """sign(x) · ((|x| + ε)^power - ε^power) with ε = `OFFSET`: nearly sign(x) · |x|^power.

    With 0.5 it is nearly the signed square root (Perronnin et al., ECCV 2010).
    """

    def __init__(self, power: float) -> None:
        super().__init__()
        self.power = power

    def forward(self, values: Tensor) -> Tensor:
        return values.sign() * ((values.abs() + OFFSET).pow(self.power) - OFFSET**self.power)

    def extra_repr(self) -> str:
        return f"power={self.power}"


class LevelNorm(nn.Module):
    """Divides the values of each level of a pyramid by their Euclidean norm.

    The product of two images is then the sum of one linear kernel per level.

    Args:
        sizes: Values of each level, one level after the other.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.sizes = tuple(sizes)

    def forward(self, values: Tensor) -> Tensor:
        levels = values.split(self.sizes, dim=1)
        return torch.cat([nn.functional.normalize(level, dim=1) for level in levels], dim=1)

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


class PyramidPool(nn.Module):
    """Average pools of several sizes (Lazebnik et al., CVPR 2006; He et al., ECCV 2014), level by level.

    n × channels × h × w → n × (channels · Σ size²) × 1 × 1.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.levels = nn.ModuleList([nn.AdaptiveAvgPool2d(size) for size in sizes])

    def forward(self, maps: Tensor) -> Tensor:
        pooled = torch.cat([level(maps).flatten(1) for level in self.levels], dim=1)
        return pooled[:, :, None, None]


def pooling(pool: Pool) -> nn.Module:
    """The pooling layer of a head on pooled features."""
    return nn.AdaptiveAvgPool2d(pool) if isinstance(pool, int) else PyramidPool(pool)


def bins(pool: Pool) -> int:
    """Values per channel after the pooling."""
    return sum(size**2 for size in _sizes(pool))


@dataclass(frozen=True)
class HeadSpec:
    """What a head is made of. The fields are settings of the group `model`."""

    head: str
    """classifier, pooled or linear."""
    pool: Pool
    width: int
    dropout: float
    power: float = 1.0
    norm: str = "none"

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> HeadSpec:
        """From a model's description, which may have other fields. Raises KeyError if one is missing."""
        optional = {name: fields[name] for name in ("power", "norm") if name in fields}
        return cls(*(fields[name] for name in ("head", "pool", "width", "dropout")), **optional)


def build_head(spec: HeadSpec, features: Sequence[int], classes: int) -> nn.Sequential:
    """A new head.

    classifier: linear, ReLU, dropout, linear; pooled: the same after one more dropout; linear: the signed power and the
    norm of the features, if there are any, and one linear layer.

    Args:
        spec: What it is made of.
        features: Inputs per image, of each map that is pooled.
        classes: The number of classes.
    """
    layers: list[nn.Module]
    if spec.head == "linear":
        layers = [SignedPower(spec.power)] if spec.power != 1 else []
        if spec.norm == "l2":
            channels = [values // bins(spec.pool) for values in features]
            layers.append(LevelNorm([each * size**2 for each in channels for size in _sizes(spec.pool)]))
        return nn.Sequential(*layers, nn.Linear(sum(features), classes))
    layers = [
        nn.Linear(sum(features), spec.width),
        nn.ReLU(),
        nn.Dropout(spec.dropout),
        nn.Linear(spec.width, classes),
    ]
    return (
        nn.Sequential(nn.Dropout(spec.dropout), *layers) if spec.head == "pooled" else nn.Sequential(*layers)
    )


def _sizes(pool: Pool) -> Sequence[int]:
    return [pool] if isinstance(pool, int) else pool
