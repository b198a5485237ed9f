"""What maps are computed of: images, and the methods that need no more than a pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from runner.explain.methods import METHODS

QUICK = tuple(name for name, method in METHODS.items() if not method.runs_images)
"""The methods that need one pass, all but Score-CAM."""


def images(count: int = 3, side: int = 64) -> Tensor:
    """Smooth random images (count × 3 × side × side, uint8), the same in every call."""
    generator = torch.Generator().manual_seed(count * 1000 + side)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return (255 * F.interpolate(coarse, size=(side, side), mode="bilinear")).to(torch.uint8)
