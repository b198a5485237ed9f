"""The settings of augmentation and of the evaluation transform: the group `augment`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from runner.config.fields import (
    Degrees,
    Hue,
    Interpolation,
    Interval,
    NonNegativeFloat,
    PositiveInt,
    Probability,
    setting,
)

MOST_PIXELS = 10_000
"""Height and width of the largest images that a model can take."""


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of the training images, and the evaluation transform."""

    views: Literal["none", "fresh"] | PositiveInt = "fresh"
    """Augmented views per training image. fresh: a new one every epoch; N: epoch e (from 0) uses view e mod N;
    none: no augmentation."""
    resize: PositiveInt = setting(256, unit="px")
    """Shorter side of the image in the evaluation transform, and size of the augmented crop."""
    crop: PositiveInt = setting(224, unit="px")
    """Size of the image that the model receives, unless there are scales."""
    crop_mode: Literal["center", "squash"] = "center"
    """The evaluation transform. center: the shorter side is resized, and the center is cut out; squash: the whole image
    is squashed to crop x crop."""
    scales: tuple[PositiveInt, ...] = setting((), unit="px")
    """Sizes at which each image goes through the frozen convolutions, as [224, 320, 448]; their pooled values are
    stacked. The model receives the largest size, and makes the others from it. Empty: only the size of the crop."""
    tta: Literal["none", "flips", "scales", "flips+scales"] = "none"
    """Test-time augmentation, which is a part of the model, in training, too. flips: the maps of an image and of its
    mirror image, turned back, are averaged before they are pooled, which takes twice the time; scales: the pooled
    values of the scales are averaged, not stacked."""
    scale: Interval = (0.8, 1.0)
    """Minimum and maximum fraction of the image's area in the random crop."""
    ratio: Interval = (0.75, 4 / 3)
    """Minimum and maximum aspect ratio (width / height) of the random crop."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    rotation: Degrees = setting(15.0, unit="degrees")
    """Maximum rotation in either direction."""
    brightness: NonNegativeFloat = 0.0
    """Maximum brightness jitter: the factor is in 1 ± this value."""
    contrast: NonNegativeFloat = 0.0
    """Maximum contrast jitter: the factor is in 1 ± this value."""
    saturation: NonNegativeFloat = 0.0
    """Maximum saturation jitter: the factor is in 1 ± this value."""
    hue: Hue = 0.0
    """Maximum hue shift, as a fraction of the color circle."""
    policy: Literal["none", "randaugment", "trivialaugment"] = "none"
    """Random operations on colors and shape after crop and flip, as in torchvision. randaugment: several, at one
    magnitude; trivialaugment: one, at a random magnitude."""
    operations: PositiveInt = 2
    """randaugment: operations per view."""
    magnitude: Annotated[int, Ge(0), Le(30)] = 9
    """randaugment: their magnitude, from 0 to 30."""
    erasing: Probability = 0.0
    """Probability that a random rectangle of the view is filled with ImageNet's mean color."""
    interpolation: Interpolation = "bilinear"
    """Interpolation of resizing and of the random crop."""
    rotation_interpolation: Interpolation = "nearest"
    """Interpolation of the rotation."""

    def __post_init__(self) -> None:
        if self.crop > self.resize:
            raise ValueError(
                f"augment.crop ({self.crop}) must not be greater than augment.resize ({self.resize})"
            )
        if len(set(self.scales)) < len(self.scales):
            raise ValueError(f"augment.scales must be different sizes; they are {list(self.scales)}")
        if (smallest := min(self.scales, default=self.crop)) < self.crop:
            # At the center, augment.resize keeps its proportion, so that the same part of the image is cut out.
            resize = f" --augment.resize {round(self.resize * smallest / self.crop)}"
            raise ValueError(
                f"augment.scales are {list(self.scales)}, but none may be smaller than augment.crop ({self.crop}):"
                f" give larger ones, or --augment.crop {smallest}{resize * (self.crop_mode == 'center')}"
            )
        if self.scales and max(self.input_size, self.input_resize) > MOST_PIXELS:
            raise ValueError(
                f"augment.scales are too large: images would be resized to {max(self.input_size, self.input_resize)}"
                f" pixels, and {MOST_PIXELS} are the most"
            )
        if "scales" in self.tta and len(self.scales) < 2:
            raise ValueError(f"augment.tta={self.tta} averages scales; name two or more as augment.scales")
        if not self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(
                f"augment.scale must be a minimum and a maximum, at most 1; it is {list(self.scale)}"
                + " (sizes in pixels are augment.scales)" * (self.scale[0] > 1)
            )
        if self.ratio[0] > self.ratio[1]:
            raise ValueError(f"augment.ratio must be a minimum and a maximum; it is {list(self.ratio)}")

    @property
    def input_size(self) -> int:
        """Height and width of the image that the model receives, in pixels."""
        return max(self.scales, default=self.crop)

    @property
    def input_resize(self) -> int:
        """`resize` for an input of that size: the same part of the image is cut out."""
        if self.crop_mode == "squash":
            return max(self.resize, self.input_size)
        return round(self.resize * self.input_size / self.crop)
