"""Random weights with torchvision's names."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from runner.config.schema import ModelConfig
from runner.models import pretrained
from runner.models.pretrained import PretrainedWeights


def torchvision_model(arch: str) -> nn.Module:
    """torchvision's own model, without memory for its weights."""
    with torch.device("meta"):
        return torchvision.models.get_model(arch, weights=None).eval()


def drawn_weights(arch: str, classifier: bool = True) -> dict[str, Tensor]:
    """All tensors but the last layer's. None of them is all zeros or ones, so that a forgotten one is noticed.

    Args:
        arch: Name of a VGG.
        classifier: Draw its classifier, too.
    """
    generator = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for name, value in torchvision_model(arch).state_dict().items():
        if name.startswith("classifier.6.") or (name.startswith("classifier.") and not classifier):
            continue
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
        elif value.dim() > 1:
            spread = (2 / value[0].numel()) ** 0.5
            tensors[name] = torch.empty(value.shape).normal_(0, spread, generator=generator)
        else:
            tensors[name] = torch.empty(value.shape).uniform_(0.5, 1.5, generator=generator)
    return tensors


def read_vgg11(path: Path) -> PretrainedWeights:
    """The weights in a file of vgg11."""
    weights = pretrained.read_weights(ModelConfig(arch="vgg11", weights=str(path), head="pooled"))
    assert weights is not None
    return weights
