"""What `LoadedModel.predict` takes: paths, and images in memory."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from runner.portable.images import upright_rgb

ImageInput: TypeAlias = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor
"""A path, a PIL image, an array (height × width × 3, uint8) or a tensor (3 × height × width, uint8)."""

_loading = Lock()


def as_list(images: ImageInput | Iterable[ImageInput]) -> list[ImageInput]:
    """The images that a caller gives, one or several. Raises TypeError for anything that is not an `ImageInput`."""
    alone = isinstance(images, (str, bytes, os.PathLike, Image.Image, Mapping)) or not isinstance(
        images, Iterable
    )
    if alone or getattr(images, "ndim", 4) < 4:  # an array of four dimensions holds several images
        images = [images]  # type: ignore[list-item]  # checked below
    listed: list[ImageInput] = list(images)  # type: ignore[arg-type]
    for image in listed:
        if not is_path(image) and not isinstance(image, Image.Image) and not _is_rgb(image):
            raise TypeError(
                "An image is a path, a PIL image, an array (height × width × 3, uint8) or a tensor"
                f" (3 × height × width, uint8), not {_described(image)}."
            )
    return listed


def is_path(image: ImageInput) -> bool:
    """Whether an image is given by its path."""
    return isinstance(image, (str, os.PathLike))


def name_of(image: ImageInput) -> str:
    """The path of an image; empty for an image in memory."""
    return str(Path(image)) if isinstance(image, (str, os.PathLike)) else ""


def to_rgb(image: ImageInput, depth: int | None) -> Image.Image:
    """An image in memory as upright 8-bit RGB; `depth` as for `open_rgb`.

    Raises as Pillow does for a damaged one; ValueError for one that is too thin.
    """
    if isinstance(image, Image.Image):
        with _loading:  # an image may be given twice, and Pillow decodes a file only once
            image.load()
        return upright_rgb(image, depth)
    if isinstance(image, Tensor):
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    return upright_rgb(Image.fromarray(np.ascontiguousarray(image)))


def _is_rgb(image: Any) -> bool:
    """Whether it is an array or tensor of 8-bit RGB values."""
    if isinstance(image, Tensor):
        return image.ndim == 3 and image.shape[0] == 3 and str(image.dtype) == "torch.uint8"
    return (
        isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    )


def _described(image: Any) -> str:
    kind = type(image).__name__
    if not isinstance(image, (np.ndarray, Tensor)):
        return kind
    return f"{kind} of {' × '.join(map(str, image.shape)) or 'one value'}, {str(image.dtype).removeprefix('torch.')}"
