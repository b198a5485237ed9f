"""A trained model ready for inference, loaded from a folder with three files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .backbones import find_backbone
from .images import open_rgb
from .legacy import FORMAT_1, FORMAT_2, FORMAT_3, upgraded
from .model import LayeredModel, build_model, supported_precision
from .transform import evaluation_transform

FORMAT = FORMAT_3
"""The format that is written. Earlier ones can be read, too."""
WEIGHTS_FILE = "model.safetensors"
FROZEN_FILE = "frozen.safetensors"
"""The weights that did not train. Runs that have the same share it on disk."""
DESCRIPTION_FILE = "model.json"
BATCH_SIZE = 8
"""Images per forward pass. The last batch is padded, so that no result depends on the number of images."""


class ModelError(Exception):
    """A model's files are missing, damaged or of another format. The message is one sentence."""


class Classifier:
    """Classifies images.

    Args:
        model: In evaluation mode, on the CPU.
        description: The content of `model.json`: classes, transform (resize, crop, interpolation), precision, …
        device: Device to compute on; None uses a GPU if available.
    """

    def __init__(
        self, model: LayeredModel, description: dict[str, Any], device: torch.device | str | None = None
    ) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = model.to(self.device)
        self.description = description
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.transform = evaluation_transform(**description["transform"])
        self.depth: int | None = description.get("depth")
        """Bits of deep gray values, for `open_rgb`."""
        self.precision = supported_precision(description.get("precision", "no"), self.device)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str | None = None) -> Classifier:
        """The model in a folder. Raises `ModelError`."""
        weights, description_file = folder / WEIGHTS_FILE, folder / DESCRIPTION_FILE
        try:
            description = json.loads(description_file.read_text(encoding="utf-8"))
            if description["format"] not in (FORMAT_1, FORMAT_2, FORMAT_3):
                raise ModelError(
                    f"{folder} holds a model of another version ({_one_line(description['format'])})."
                )
            if description["digest"] != description_digest(description):
                raise ModelError(f"{description_file} is damaged (its digest differs); restore it.")
            tensors = _read_tensors(weights, description["sha256"])
            if "frozen_sha256" in description:
                tensors |= _read_tensors(folder / FROZEN_FILE, description["frozen_sha256"])
            description, tensors = upgraded(description, tensors)
            _check_tensors(tensors)
            _check_sizes(description)
            model = build_model(description["model"], len(_class_names(description)), tensors)
            return cls(model, description, device)
        except FileNotFoundError as error:
            raise ModelError(
                f"There is no {error.filename}; a model is {DESCRIPTION_FILE} with the .safetensors files beside it."
            ) from None
        except OSError as error:
            raise ModelError(f"{error.filename} cannot be read ({error.strerror}).") from None
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise ModelError(f"{folder} holds no model of this version ({_one_line(error)}).") from None

    def load_image(self, file: Path | str | BinaryIO, max_pixels: int | None = None) -> Tensor:
        """An image file, transformed: uint8, 3 × crop × crop. Arguments and errors are those of `open_rgb`."""
        return self.transform_image(open_rgb(file, max_pixels, self.depth))

    def transform_image(self, image: Image.Image) -> Tensor:
        """An upright RGB image, transformed: uint8, 3 × crop × crop."""
        values: Tensor = self.transform(image)
        return values

    def logits(self, images: Tensor) -> Tensor:
        """Logits (n × classes, float32, on the CPU) of transformed images (n × 3 × crop × crop, uint8)."""
        return torch.cat([self._batch_logits(batch) for batch in images.split(BATCH_SIZE)])

    def top_k(self, images: Tensor, k: int) -> list[list[tuple[str, float]]]:
        """For each transformed image its `k` most likely classes with their softmax probabilities, best first."""
        probabilities = self.logits(images).double().softmax(1)
        # The stable sort decides ties the same on every device: the class that comes first.
        values, classes = probabilities.sort(dim=1, descending=True, stable=True)
        return [
            [(self.classes[index], value) for index, value in zip(row, row_values, strict=True)]
            for row, row_values in zip(classes[:, :k].tolist(), values[:, :k].tolist(), strict=True)
        ]

    def _batch_logits(self, images: Tensor) -> Tensor:
        missing = BATCH_SIZE - len(images)
        padded = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=self.precision != "no")
        with torch.inference_mode(), autocast:
            return self.model(padded.to(self.device))[: len(images)].float().cpu()


def _read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """The tensors in a file. Raises `ModelError` if it is damaged."""
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise ModelError(f"{path} is damaged (its digest differs); restore it.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({_one_line(error)}); restore it.") from None


def description_digest(description: dict[str, Any]) -> str:
    """Digest of a description, all of it except its entry `digest`."""
    rest = {name: value for name, value in description.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _class_names(description: dict[str, Any]) -> list[str]:
    """The class names. Raises ValueError unless they are a list of distinct strings."""
    names = description["classes"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its class names are not a list of strings")
    if len(set(names)) != len(names):
        raise ValueError("two of its classes have the same name")
    return names


def _check_sizes(description: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError if the model cannot take images of the size of its transform."""
    resize, crop = description["transform"]["resize"], description["transform"]["crop"]
    pool, backbone = description["model"]["pool"], find_backbone(description["model"]["arch"])
    depth = description.get("depth", 1)
    pools = pool if isinstance(pool, list) else [pool]
    scales = description["model"].get("scales", ())
    if (
        not all(type(number) is int for number in (resize, crop, *pools, *scales, depth))
        or not 1 <= depth <= 32
    ):
        raise TypeError("its image sizes are not integers")
    if scales and (max(scales) != crop or min(scales) < backbone.min_input_size):
        raise ValueError(f"images of {crop} pixels have no scales {list(scales)}")
    if not (backbone.min_input_size <= crop <= resize <= 10_000 and pools and min(pools) >= 1):
        raise ValueError(
            f"images cannot be resized to {resize}, cropped to {crop} and pooled to {pool} pixels"
        )


def _check_tensors(tensors: dict[str, Tensor]) -> None:
    """Raises ValueError unless the tensors are finite float32 numbers, or int64: counts of batches, and indices.

    `build_model` checks that each has the type that the network needs.
    """
    for name, value in tensors.items():
        if value.dtype != torch.int64 and (value.dtype != torch.float32 or not torch.isfinite(value).all()):
            raise ValueError(f"{name} does not hold finite float32 numbers")


def _one_line(value: object) -> str:
    """For a message: `value` on one line, at most 300 characters."""
    line = "".join(char if char.isprintable() else " " for char in str(value)[:1000])
    return " ".join(line.split())[:300]
