"""What the rest of the program knows of a pretrained network, and the registry of those it can use.

To add a network, write a module in `backbones/` that registers a `Backbone` for each architecture. Importing this
module or an adapter imports no torch, so that settings can be checked quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import nn

    from .head import Pool

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics (red, green, blue; scale 0 to 1) that torchvision's ImageNet weights are trained with."""


@dataclass(frozen=True)
class BackboneModules:
    """The modules of a backbone, and the order in which they run.

    Blocks run one after another: each takes the output tensor of the block before it, and the first takes normalized
    images. Inside a block anything may happen: a residual block with its two branches is one block.
    """

    root: nn.Module
    """Its children become children of the model under the same names, so that pretrained weights fit."""
    blocks: tuple[str, ...]
    """Dotted names of the blocks in the order of the forward pass. The new head runs after the last one."""
    head: str
    """Dotted name of the module that the new head replaces."""
    num_features: int
    """Values per image that reach the head."""
    pooling: str
    """The pooling block. It and the blocks before it have outputs with a height and width. The blocks before it
    compute the same for every kind of head."""
    cam_layer: str
    """The block that Grad-CAM explains by default."""


class Backbone(Protocol):
    """An architecture that a new head can be trained on."""

    arch: str
    """Value of `model.arch`."""
    description: str
    """A few words for `--help`."""
    weights_enum: str
    """torchvision's enum of its pretrained weights, as "VGG16_Weights"."""
    weights_without_classifier: tuple[str, ...]
    """Members of the enum without a usable classifier: they need a pooled head."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """Channel statistics (red, green, blue; scale 0 to 1) that its ImageNet weights are trained with."""
    input_size: int
    """Height and width of the images that its ImageNet weights are trained with."""
    min_input_size: int
    """The smallest height and width that it can process."""

    def build(self, head: str, pool: Pool) -> BackboneModules:
        """Its modules, without initialized weights; the caller decides on which device.

        Args:
            head: "classifier": only the last layer of its own classifier is replaced; others: the whole classifier.
            pool: Where the whole classifier is replaced: `head.pooling` of the last feature map.
        """

    def initialize(self, module: nn.Module) -> None:
        """Draw random initial weights of a module, not of its children, from torch's global generator."""


BACKBONES: dict[str, Backbone] = {}
"""All backbones by architecture name. Import it from `backbones`, which fills it."""


def register(backbone: Backbone) -> None:
    """Add a backbone. Raises `ValueError` if its architecture is registered already."""
    if backbone.arch in BACKBONES:
        raise ValueError(f"model.arch={backbone.arch} is registered twice")
    BACKBONES[backbone.arch] = backbone
