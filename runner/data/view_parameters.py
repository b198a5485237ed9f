"""What was drawn for a view: the parameters of its random transforms, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from runner.data.transforms import ViewTransform

OPERATIONS = (v2.RandAugment, v2.TrivialAugmentWide)


def described_view(
    transform: ViewTransform, image: Image.Image, content: str, view: int
) -> tuple[Tensor, list[str]]:
    """A view, as `ViewTransform` makes it, and what each random transform did to it.

    Args:
        transform: Makes the view.
        image: RGB, of any size.
        content: Digest of the image's file.
        view: Number of an augmented view.
    """
    words: list[str] = []
    with _noting(transform.augmented.transforms, image.size, words):
        return transform(image, content, view), words


@contextmanager
def _noting(transforms: list[v2.Transform], size: tuple[int, int], words: list[str]) -> Iterator[None]:
    """Within the block, the transforms say in words what they do. Their methods are torchvision's extension points."""
    noted: list[tuple[v2.Transform, str]] = []

    def follow(transform: v2.Transform, method: str, describe: Callable[..., str]) -> None:
        original = getattr(transform, method)

        def noting(*args: Any, **keywords: Any) -> Any:
            result = original(*args, **keywords)
            words.extend(filter(None, describe(result, *args).split("\n")))
            return result

        setattr(transform, method, noting)
        noted.append((transform, method))

    for transform in transforms:
        if isinstance(transform, v2.RandomResizedCrop):
            follow(transform, "make_params", lambda drawn, *_: _crop(drawn, size))
        elif isinstance(transform, v2.RandomHorizontalFlip):
            follow(transform, "transform", lambda *_: "mirrored")
        elif isinstance(transform, v2.RandomRotation):
            follow(transform, "make_params", lambda drawn, *_: f"rotated {drawn['angle']:.1f}°")
        elif isinstance(transform, OPERATIONS):
            follow(transform, "_apply_image_or_video_transform", lambda _, image, *drawn: _operation(*drawn))
        elif isinstance(transform, v2.ColorJitter):
            follow(transform, "make_params", lambda drawn, *_: _jitter(drawn))
        elif isinstance(transform, v2.RandomErasing):
            follow(transform, "make_params", lambda drawn, *_: _erased(drawn))
    try:
        yield
    finally:
        for transform, method in noted:
            delattr(transform, method)


def _crop(drawn: dict[str, Any], size: tuple[int, int]) -> str:
    width, height = drawn["width"], drawn["height"]
    return f"crop of {width * height / (size[0] * size[1]):.0%}, {width / height:.2f} : 1"


def _operation(name: str, magnitude: float) -> str:
    return f"{name} {magnitude:+.3g}" if magnitude else name


def _erased(drawn: dict[str, Any]) -> str:
    """Empty if no rectangle fitted."""
    return f"erased {drawn['w']} × {drawn['h']} px" if drawn["v"] is not None else ""


def _jitter(drawn: dict[str, Any]) -> str:
    names = ("brightness", "contrast", "saturation", "hue")
    factors = ((name, drawn[f"{name}_factor"]) for name in names)
    return "\n".join(
        f"{name} {factor:+.2f}" if name == "hue" else f"{name} × {factor:.2f}"
        for name, factor in factors
        if factor is not None
    )
