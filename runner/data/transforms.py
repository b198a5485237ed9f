"""Views: the transformed images that a model sees.

A view is a pure function of (augmentation seed, image content, view number), in whatever process and order it is
computed. So `augment.views=8` extends `augment.views=4`, and `fresh` is a new view in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from runner.config.augment_schema import AugmentConfig
from runner.portable.transform import evaluation_transform
from runner.utils import hashing
from runner.utils.rng import seeded

EVALUATION_VIEW = -1
"""The view number of the transform without augmentation. Augmented views are numbered from 0."""


ERASED = (124, 116, 104)
"""The mean color of ImageNet, which is 0 after the usual normalization."""


def view_of_epoch(epoch: int, views: str | int) -> int:
    """The number of the view that an epoch (from 0) trains on, for the setting `augment.views`."""
    if views == "none":
        return EVALUATION_VIEW
    return epoch if views == "fresh" else epoch % int(views)


def evaluation_settings(augment: AugmentConfig) -> dict[str, Any]:
    """Arguments of `evaluation_transform`; its defaults are left out, as before there were others."""
    mode = {} if augment.crop_mode == "center" else {"crop_mode": augment.crop_mode}
    resize, crop = augment.input_resize, augment.input_size
    return {"resize": resize, "crop": crop, "interpolation": augment.interpolation, **mode}


class ViewTransform:
    """Transforms images into views. Pickled as its arguments, for loader processes.

    Args:
        augment: The transforms.
        seed: Of the augmented views.
        depth: Bits of deep gray values, for `open_rgb`.
    """

    def __init__(self, augment: AugmentConfig, seed: int, depth: int | None = None) -> None:
        self.augment = augment
        self.seed = seed
        self.depth = depth
        self.evaluation = evaluation_transform(**evaluation_settings(augment))
        erasing = [v2.RandomErasing(augment.erasing, value=list(ERASED))] if augment.erasing else []
        self.augmented = v2.Compose(
            [*_augmentation(augment), v2.CenterCrop(augment.input_size), v2.PILToTensor(), *erasing]
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _transform, (self.augment, self.seed, self.depth)

    def __call__(self, image: Image.Image, content: str, view: int) -> Tensor:
        """A view of an RGB image: uint8, 3 × crop × crop.

        Args:
            image: RGB, of any size.
            content: Digest of the image's file.
            view: `EVALUATION_VIEW` or the number of an augmented view.
        """
        if view == EVALUATION_VIEW:
            return self.evaluation(image)
        with seeded(hashing.derive_seed("view", self.seed, content, view)):
            return self.augmented(image)

    def recipe(self, view: int) -> dict[str, Any]:
        """Everything besides image content and view number that decides the pixels of a view."""
        recipe = evaluation_settings(self.augment)
        if self.depth is not None:
            recipe["depth"] = self.depth
        if view == EVALUATION_VIEW:
            if self.augment.crop_mode == "squash":
                # The setting has no effect. Features that are kept have its default value here.
                recipe["resize"] = max(AugmentConfig.resize, self.augment.input_size)
            return recipe
        names = ("scale", "ratio", "flip", "rotation", "brightness", "contrast", "saturation", "hue")
        random = {name: getattr(self.augment, name) for name in (*names, "rotation_interpolation")}
        return {**recipe, **random, **self._further_recipe(), "seed": self.seed}

    def _further_recipe(self) -> dict[str, Any]:
        """Settings that are no part of a recipe where they do nothing: features are kept from before there were any."""
        further: dict[str, Any] = {}
        if self.augment.policy != "none":
            further["policy"] = self.augment.policy
        if self.augment.policy == "randaugment":
            further |= {"operations": self.augment.operations, "magnitude": self.augment.magnitude}
        if self.augment.erasing:
            further["erasing"] = self.augment.erasing
        return further


@cache
def _transform(augment: AugmentConfig, seed: int, depth: int | None) -> ViewTransform:
    return ViewTransform(augment, seed, depth)


def _augmentation(augment: AugmentConfig) -> Iterator[v2.Transform]:
    """The random transforms; those that do nothing at their setting are left out."""
    yield v2.RandomResizedCrop(
        augment.input_resize,
        scale=augment.scale,
        ratio=augment.ratio,
        interpolation=v2.InterpolationMode(augment.interpolation),
    )
    if augment.flip:
        yield v2.RandomHorizontalFlip(augment.flip)
    if augment.rotation:
        yield v2.RandomRotation(
            augment.rotation, interpolation=v2.InterpolationMode(augment.rotation_interpolation)
        )
    interpolation = v2.InterpolationMode(augment.rotation_interpolation)
    if augment.policy == "randaugment":
        yield v2.RandAugment(augment.operations, augment.magnitude, interpolation=interpolation)
    if augment.policy == "trivialaugment":
        yield v2.TrivialAugmentWide(interpolation=interpolation)
    jitter = {name: getattr(augment, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(jitter.values()):
        yield v2.ColorJitter(**jitter)
