"""The transform that images go through for evaluation and inference."""

from __future__ import annotations

from torchvision.transforms import v2


def evaluation_transform(resize: int, crop: int, interpolation: str, crop_mode: str = "center") -> v2.Compose:
    """A transform from an RGB image to a tensor: uint8, 3 × crop × crop.

    Args:
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the result, in pixels.
        interpolation: nearest, bilinear or bicubic.
        crop_mode: center: the center crop of the resized image; squash: the whole image, whatever its aspect ratio.

    Raises ValueError for another crop_mode.
    """
    mode = v2.InterpolationMode(interpolation)
    if crop_mode == "squash":
        return v2.Compose([v2.Resize((crop, crop), interpolation=mode), v2.PILToTensor()])
    if crop_mode != "center":
        raise ValueError(f"crop_mode is {crop_mode!r}, not center or squash")
    return v2.Compose(
        [
            v2.Resize(resize, interpolation=mode),
            v2.CenterCrop(crop),
            v2.PILToTensor(),
        ]
    )
