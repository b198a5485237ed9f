"""torchvision's VGG networks (Simonyan & Zisserman, Very Deep Convolutional Networks, ICLR 2015, table 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from ..backbone import IMAGENET_MEAN, IMAGENET_STD, BackboneModules, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..head import Pool

CONVOLUTION_CHANNELS = 512
"""Channels of the last convolution."""
CLASSIFIER_WIDTH = 4096
"""Outputs of the classifier's layers before its last one."""


class VGG:
    """features → avgpool → flatten → classifier, which the head replaces in part (classifier.6) or as a whole."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    input_size = 224
    min_input_size = 32  # five poolings halve it

    def __init__(self, depth: int, batch_norm: bool) -> None:
        self.arch = f"vgg{depth}_bn" if batch_norm else f"vgg{depth}"
        self.description = f"VGG with {depth} layers{' and batch normalization' * batch_norm}"
        self.weights_enum = f"{self.arch.upper()}_Weights"
        self.weights_without_classifier = ("IMAGENET1K_FEATURES",) * (self.arch == "vgg16")

    def build(self, head: str, pool: Pool) -> BackboneModules:
        """Its modules, with torchvision's names."""
        from torch import nn
        from torchvision.models import get_model

        from ..head import bins, pooling

        root = get_model(self.arch, weights=None)
        root.flatten = nn.Flatten(1)
        features = [f"features.{index}" for index in range(len(cast(nn.Sequential, root.features)))]
        blocks = [*features, "avgpool", "flatten"]
        if head == "classifier":
            blocks += [f"classifier.{index}" for index in range(6)]
            replaced, num_features = "classifier.6", CLASSIFIER_WIDTH
        else:
            root.avgpool = pooling(pool)
            replaced, num_features = "classifier", CONVOLUTION_CHANNELS * bins(pool)
        cam_layer = features[-2]  # the ReLU after the last convolution; a max pooling follows it
        return BackboneModules(root, tuple(blocks), replaced, num_features, "avgpool", cam_layer)

    def initialize(self, module: nn.Module) -> None:
        """As torchvision initializes its VGG."""
        from torch import nn

        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast("Tensor", module.bias))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()


for _batch_norm in (False, True):
    for _depth in (11, 13, 16, 19):
        register(VGG(_depth, _batch_norm))
