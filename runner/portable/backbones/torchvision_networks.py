"""All of torchvision's image classifiers. Their blocks are found in their graphs."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ..backbone import LIBRARIES, Backbone, BackboneModules, Preprocessing

if TYPE_CHECKING:
    from torch import nn

    from ..head import Pool


class Torchvision:
    """The architectures of `torchvision.models`."""

    def names(self) -> list[str]:
        """The classifiers of images, not those of single pixels or of videos."""
        from torchvision import models

        return models.list_models(module=models)

    def find(self, arch: str) -> Backbone | None:
        """An architecture of this name."""
        return TorchvisionNetwork(arch) if arch in self.names() else None


class TorchvisionNetwork:
    """An architecture of torchvision."""

    description = "an architecture of torchvision"
    min_input_size = 1

    def __init__(self, arch: str) -> None:
        self.arch = arch
        self.weights_without_classifier: tuple[str, ...] = ()

    @functools.cached_property
    def _weights(self) -> Any:
        """The enum of its weights."""
        from torchvision.models import get_model_weights

        return get_model_weights(self.arch)

    @property
    def weights_enum(self) -> str:
        """The enum's name."""
        return str(self._weights.__name__)

    def weights_names(self) -> list[str]:
        """The members of the enum."""
        return [f"{self.weights_enum}.{name}" for name in self._weights.__members__]

    def default_weights(self) -> str:
        """torchvision's own default."""
        return f"{self.weights_enum}.{self._weights.DEFAULT.name}"

    def license(self, weights: str | None) -> str:
        """torchvision names none."""
        return ""

    def preprocessing(self, weights: str | None) -> Preprocessing:
        """That of the weights' transform."""
        name = (weights or "").rpartition(".")[2]
        member = self._weights[name] if name in self._weights.__members__ else self._weights.DEFAULT
        transform = member.transforms()
        return Preprocessing(
            transform.crop_size[0],
            transform.resize_size[0],
            transform.interpolation.value,
            tuple(transform.mean),
            tuple(transform.std),
        )

    def build(self, head: str, pool: Pool, size: int, random_weights: bool) -> BackboneModules:
        """Its modules, with torchvision's names."""
        from ..traced import trace_backbone

        return trace_backbone(self, self.create, head, pool, size, random_weights)

    def create(self, size: int) -> nn.Module:
        """As torchvision builds it; networks for one size of images only, for this size."""
        from torchvision.models import get_model

        options: dict[str, object] = {}
        if self.arch.startswith("vit_"):
            options["image_size"] = size
        elif self.arch.startswith("maxvit"):
            options["input_size"] = (size, size)
        elif self.arch in ("googlenet", "inception_v3"):
            # As for pretrained weights: they expect images that are normalized in another way. Not given, init_weights
            # would be warned of.
            options |= {"init_weights": True, "transform_input": True}
        return get_model(self.arch, weights=None, **options)


LIBRARIES[""] = Torchvision()
