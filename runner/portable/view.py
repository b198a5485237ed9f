"""The view of an image that a network is judged on."""

from __future__ import annotations

from torchvision.transforms import v2


def evaluation_view(resize: int, crop: int, interpolation: str) -> v2.Compose:
    """From an RGB image to its evaluation view: uint8, 3 × crop × crop.

    Args:
        resize: Pixels that the shorter side is brought to.
        crop: Pixels of the centre crop.
        interpolation: nearest, bilinear or bicubic.
    """
    return v2.Compose(
        [
            v2.Resize(resize, interpolation=v2.InterpolationMode(interpolation)),
            v2.CenterCrop(crop),
            v2.PILToTensor(),
        ]
    )
