"""The transform that images go through for evaluation and inference."""

from __future__ import annotations

from torchvision.transforms import v2


def evaluation_transform(resize: int, crop: int, interpolation: str) -> v2.Compose:
    """A transform from an RGB image to a tensor: uint8, 3 × crop × crop.

    Args:
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the center crop, in pixels.
        interpolation: nearest, bilinear or bicubic.
    """
    return v2.Compose(
        [
            v2.Resize(resize, interpolation=v2.InterpolationMode(interpolation)),
            v2.CenterCrop(crop),
            v2.PILToTensor(),
        ]
    )
