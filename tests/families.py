"""The smallest member of each family of networks, with small images and random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from helpers import small_model
from torch import nn

from runner.models.transfer_model import TransferModel
from runner.portable.backbone import find_backbone


@dataclass(frozen=True)
class Family:
    """A member of a family.

    Args:
        arch: Value of `model.arch`.
        size: Height and width of images, in pixels.
        grid: Height of the map that Grad-CAM explains.
        heads: Those that it takes.
    """

    arch: str
    size: int
    grid: int
    heads: tuple[str, ...] = ("classifier", "pooled")

    def words(self) -> list[str]:
        """Settings of the small experiment with this network."""
        size = str(self.size)
        return [
            *("--model.arch", self.arch, "--model.weights", "null", "--model.head", "pooled"),
            *("--augment.resize", size, "--augment.crop", size),
        ]

    def model(self, **changes: Any) -> TransferModel:
        """A small model; `changes` are fields of its `ModelSpec`."""
        return small_model(**{"arch": self.arch, "input_size": self.size} | changes)

    def network(self) -> nn.Module:
        """The library's own network, in evaluation mode."""
        backbone: Any = find_backbone(self.arch)
        create = getattr(backbone, "create", None)
        if create is None:
            from torchvision.models import get_model

            return get_model(self.arch, weights=None).eval()
        network: nn.Module = create(self.size)
        return network.eval()


FAMILIES = {
    "VGG": Family("vgg11", 32, 2),
    "ResNet": Family("resnet18", 64, 2),
    "ResNeXt": Family("timm/resnext26ts", 64, 2),
    "DenseNet": Family("densenet121", 64, 2),
    "EfficientNet": Family("efficientnet_b0", 64, 2),
    "EfficientNet-Lite": Family("timm/tf_efficientnet_lite0", 64, 2),
    "MobileNetV3": Family("timm/mobilenetv3_small_050", 64, 2),
    "RegNet": Family("regnet_x_400mf", 64, 2),
    "ConvNeXt": Family("timm/convnext_atto", 64, 2),
    "ViT": Family("timm/vit_tiny_patch16_224", 32, 2),
    "DeiT": Family("timm/deit_tiny_distilled_patch16_224", 32, 2, ("pooled",)),
    "Swin": Family("swin_t", 64, 2),
    "MaxViT": Family("timm/maxvit_rmlp_pico_rw_256", 64, 2),
    "DINOv2": Family("timm/vit_small_patch14_dinov2", 28, 2),
    "DINOv3": Family("timm/vit_tiny_patch16_dinov3_qkvb", 32, 2),
}
