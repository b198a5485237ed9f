"""Views: what the network is shown of an image.

A view is a pure function of (view seed, image content, view number), whatever process computes it and in
whatever order: `N = 8` extends `N = 4`, and `fresh` is N without end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from runner.config.schema import Views
from runner.portable.view import evaluation_view
from runner.utils import hashing
from runner.utils.rng import seeded

CLEAN = -1
"""The number of the evaluation view; augmented views count from 0."""


def view_of(epoch: int, train: str | int) -> int:
    """The number of the view that an epoch (from 0) trains on, under the setting `augment.views`."""
    if train == "none":
        return CLEAN
    return epoch if train == "fresh" else epoch % int(train)


def transform(augment: Views) -> dict[str, Any]:
    """The settings of the evaluation view: a model's transform."""
    return {"resize": augment.resize, "crop": augment.crop, "interpolation": augment.interpolation}


class Renderer:
    """Turns image files into views. Picklable: loader processes take it along."""

    def __init__(self, augment: Views, view_seed: int) -> None:
        self.augment = augment
        self.seed = view_seed
        self.clean = evaluation_view(**transform(augment))
        self.augmented = v2.Compose([*_augmentation(augment), v2.CenterCrop(augment.crop), v2.PILToTensor()])

    def __call__(self, image: Image.Image, content: str, view: int) -> Tensor:
        """A view of an RGB image: uint8, 3 × crop × crop.

        Args:
            image: RGB, of any size.
            content: Digest of the image's file, which names it wherever it lies.
            view: `CLEAN`, or the number of an augmented view.
        """
        if view == CLEAN:
            return self.clean(image)
        with seeded(hashing.seed("view", self.seed, content, view)):
            return self.augmented(image)

    def recipe(self, view: int) -> dict[str, Any]:
        """Everything beside content and number that decides the pixels of a view of this kind."""
        augment = self.augment
        clean = transform(augment)
        if view == CLEAN:
            return clean
        names = ("scale", "ratio", "flip", "rotation", "brightness", "contrast", "saturation", "hue")
        random = {name: getattr(augment, name) for name in (*names, "rotation_interpolation")}
        return {**clean, **random, "seed": self.seed}


def _augmentation(augment: Views) -> Iterator[v2.Transform]:
    """The report's augmentation; what does nothing at its setting is left out."""
    yield v2.RandomResizedCrop(
        augment.resize,
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
    jitter = {name: getattr(augment, name) for name in ("brightness", "contrast", "saturation", "hue")}
    if any(jitter.values()):
        yield v2.ColorJitter(**jitter)
