"""torchvision's VGG networks (Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015, table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..backbone import BackboneModules, Block, Layout, Preprocessing, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..head import Pool

CLASSIFIER_WIDTH = 4096
"""Outputs of the classifier's layers before its last one."""


class VGG:
    """features → avgpool → flatten → classifier, which the head replaces in part (classifier.6) or as a whole."""

    min_input_size = 32  # five poolings halve it

    def __init__(self, depth: int, batch_norm: bool) -> None:
        self.arch = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
        self.description = f"VGG with {depth} layers{' and batch normalization' * batch_norm}"
        self.weights_enum = f"{self.arch.upper()}_Weights"
        self.weights_without_classifier = ("IMAGENET1K_FEATURES",) * (self.arch == "vgg16")

    def weights_names(self) -> list[str]:
        """torchvision's, for ImageNet."""
        return [
            self.default_weights(),
            *(f"{self.weights_enum}.{each}" for each in self.weights_without_classifier),
        ]

    def default_weights(self) -> str:
        """torchvision's."""
        return f"{self.weights_enum}.IMAGENET1K_V1"

    def license(self, weights: str | None) -> str:
        """torchvision names none."""
        return ""

    def preprocessing(self, weights: str | None) -> Preprocessing:
        """That of torchvision's ImageNet weights."""
        return Preprocessing(crop=224, resize=256, interpolation="bilinear")

    def build(self, head: str, pool: Pool, size: int, random_weights: bool) -> BackboneModules:
        """Its modules, with torchvision's names."""
        from torch import nn
        from torchvision.models import get_model

        from ..graph import meta_parameters
        from ..head import bins, pooling

        with meta_parameters():
            root = get_model(self.arch, weights=None)
        root.flatten = nn.Flatten(1)
        layouts, channels = {}, 3
        for name, layer in cast(nn.Sequential, root.features).named_children():
            channels = layer.out_channels if isinstance(layer, nn.Conv2d) else channels
            layouts[f"features.{name}"] = Layout(channels)
        names = [*layouts, "avgpool", "flatten"]
        if head == "classifier":
            names += [f"classifier.{index}" for index in range(6)]
            replaced, num_features = "classifier.6", CLASSIFIER_WIDTH
        else:
            root.avgpool = pooling(pool)
            replaced, num_features = "classifier", channels * bins(pool)
        if random_weights:
            for name in names:
                _initialize(root.get_submodule(name))
        cam_layer = [*layouts][-2]  # the ReLU after the last convolution; a max pooling follows it
        return BackboneModules(root, Block.of(*names), replaced, num_features, "avgpool", cam_layer, layouts)


def _initialize(layer: nn.Module) -> None:
    """Draw a layer's weights as torchvision's VGG does."""
    from torch import nn

    if any(parameter.is_meta for parameter in layer.parameters()):
        layer.to_empty(device="cpu")
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(cast("Tensor", layer.bias))
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.BatchNorm2d):
        layer.reset_parameters()


for _batch_norm in (False, True):
    for _depth in (11, 13, 16, 19):
        register(VGG(_depth, _batch_norm))
