"""What the rest of the program knows of a pretrained network, and the registry of those it can use.

To add a network, write a module in `backbones/` that registers a `Backbone` for each architecture. Importing this
module or an adapter imports no torch, so that settings can be checked quickly.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .head import Pool

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel statistics (red, green, blue; scale 0 to 1) that torchvision's ImageNet weights are trained with."""


@dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for pretrained weights."""

    crop: int
    """Height and width of the images that the network receives, in pixels."""
    resize: int
    """Shorter side of an image before the center is cut out."""
    interpolation: str
    """nearest, bilinear or bicubic."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    """Channel statistics (red, green, blue; scale 0 to 1)."""
    crop_mode: str = "center"
    """center, or squash for the whole image whatever its aspect ratio."""


@dataclass(frozen=True)
class Block:
    """A part of a network that takes one tensor and returns one."""

    name: str
    """Dotted name of its last module, or of its last operation if that is no module."""
    members: tuple[str, ...]
    """Dotted names of all modules, parameters and buffers that it uses."""
    function: Callable[[nn.Module, Tensor], Tensor] | None = None
    """What it computes, given the network and the values; None: it is the module of its name."""
    code: str = ""
    """What tells the function from others."""

    @classmethod
    def of(cls, *names: str) -> tuple[Block, ...]:
        """Blocks that are the modules of these names."""
        return tuple(cls(name, (name,)) for name in names)


@dataclass(frozen=True)
class Layout:
    """How a block's output is laid out in space."""

    channels: int
    kind: str = "channels_first"
    """channels_first: n × channels × h × w; channels_last: n × h × w × channels; tokens: n × tokens × channels."""
    prefix: int = 0
    """Tokens before those of the image: class token and registers."""

    def to_map(self, values: Tensor) -> Tensor:
        """The output as n × channels × h × w. Tokens that stand for no place are left out."""
        if self.kind == "channels_first":
            return values
        if self.kind == "channels_last":
            return values.permute(0, 3, 1, 2)
        places = values[:, self.prefix :]
        side = math.isqrt(places.shape[1])
        return places.transpose(1, 2).unflatten(2, (side, side))

    def from_map(self, maps: Tensor, values: Tensor) -> Tensor:
        """The reverse of `to_map`; what it left out is taken from the output."""
        if self.kind == "channels_first":
            return maps
        if self.kind == "channels_last":
            return maps.permute(0, 2, 3, 1)
        places = maps.flatten(2).transpose(1, 2)
        # Without `torch.cat`, so that this module needs no torch.
        tokens = values.new_empty(values.shape)
        tokens[:, : self.prefix], tokens[:, self.prefix :] = values[:, : self.prefix], places
        return tokens


@dataclass(frozen=True)
class BackboneModules:
    """The modules of a backbone, and the order in which they run.

    Blocks run one after another: each takes the output tensor of the block before it, and the first takes normalized
    images. Inside a block anything may happen: a residual block with its two branches is one block.
    """

    root: nn.Module
    """Its children become children of the model under the same names, so that pretrained weights fit."""
    blocks: tuple[Block, ...]
    """In the order of the forward pass. The new head runs after the last one."""
    head: str
    """Dotted name of the module that the new head replaces."""
    num_features: int
    """Values per image that reach the head."""
    pooling: str
    """The block after the last one whose output has places in space."""
    cam_layer: str
    """The block that Grad-CAM explains by default."""
    layouts: Mapping[str, Layout]
    """The layout of the blocks before the pooling, by name; those that are missing have none."""
    stores_maps: bool = True
    """Whether the outputs before the pooling are worth storing: because other heads pool them in another way."""
    unused: tuple[str, ...] = ()
    """Dotted names of what the architecture has and the model does not use; pretrained weights may have them."""
    prefix: str = ""
    """What the names of tensors begin with in the model, but not in pretrained weights."""
    note: str = ""
    """What a user should know: that the network is one block, and why."""


class Backbone(Protocol):
    """An architecture that a new head can be trained on."""

    arch: str
    """Value of `model.arch`."""
    description: str
    """A few words for `--help`."""

    @property
    def weights_enum(self) -> str:
        """torchvision's enum of its pretrained weights, as "VGG16_Weights"; empty if they are timm's."""

    weights_without_classifier: tuple[str, ...]
    """Members of the enum without a usable classifier: they need a pooled head."""
    min_input_size: int
    """The smallest height and width that it can process, as far as that is known before it is built."""

    def weights_names(self) -> list[str]:
        """Values of `model.weights` that are neither a file nor null."""

    def default_weights(self) -> str | None:
        """The `model.weights` that are taken if none are named; None if there are none."""

    def license(self, weights: str | None) -> str:
        """The license of weights, as their source names it; empty if it does not."""

    def preprocessing(self, weights: str | None) -> Preprocessing:
        """How images are prepared for weights of this name; for others, as for the default ones."""

    def build(self, head: str, pool: Pool, size: int, random_weights: bool) -> BackboneModules:
        """Its modules.

        Args:
            head: "classifier": only the last layer of its own classifier is replaced; others: the whole classifier.
            pool: Where the whole classifier is replaced: `head.pooling` of the last feature map.
            size: Height and width of the images.
            random_weights: Draw the weights from torch's global generator. False: they are on the meta device.

        Raises ValueError if it cannot take such images or such a head.
        """


class Library(Protocol):
    """A library whose architectures can be used without an adapter for each."""

    def names(self) -> list[str]:
        """Values of `model.arch`. Raises ValueError if the library is not installed."""

    def find(self, arch: str) -> Backbone | None:
        """An architecture; None if there is none of this name. Raises ValueError as `names`."""


BACKBONES: dict[str, Backbone] = {}
"""The backbones with an adapter of their own, by architecture name. Import it from `backbones`, which fills it."""
LIBRARIES: dict[str, Library] = {}
"""By the prefix of their architectures' names."""


def register(backbone: Backbone) -> None:
    """Add a backbone. Raises `ValueError` if its architecture is registered already."""
    if backbone.arch in BACKBONES:
        raise ValueError(f"model.arch={backbone.arch} is registered twice")
    BACKBONES[backbone.arch] = backbone


@functools.cache
def _of_library(arch: str) -> Backbone | None:
    prefix = max((prefix for prefix in LIBRARIES if arch.startswith(prefix)), key=len)
    return LIBRARIES[prefix].find(arch)


def find_backbone(arch: str) -> Backbone:
    """An architecture. Raises ValueError for one that does not exist, in a sentence with similar names."""
    if backbone := BACKBONES.get(arch) or _of_library(arch):
        return backbone
    similar = _similar_names(arch)
    hint = f"; did you mean {' or '.join(map(repr, similar))}" if similar else ""
    libraries = (
        "of timm" if arch.startswith("timm/") else "of torchvision, and those of timm begin with timm/"
    )
    raise ValueError(
        f"model.arch is {arch[:100]!r}, which is no architecture {libraries}{hint}; ./launch.sh models lists them"
    )


def _similar_names(arch: str) -> list[str]:
    """Up to three: the same name with a library's prefix, or with other tags, or names that are spelled similarly."""
    names, prefixed = [*BACKBONES], []
    for prefix, library in LIBRARIES.items():
        with suppress(ValueError):  # it is not installed, or its images cannot be prepared
            if arch.startswith(prefix):
                names += library.names()
            elif library.find(f"{prefix}{arch}"):
                prefixed.append(f"{prefix}{arch}")
    plain, dot, _ = arch.rpartition(".")
    tagged = [name for name in names if dot and name.startswith(f"{plain}.")]
    return prefixed or tagged[:3] or difflib.get_close_matches(arch, names, 3, 0.6)
