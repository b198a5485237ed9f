"""A model that can be used: network, classes and transform, from a folder of two files."""

from __future__ import annotations

import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .network import VGG, build, precision
from .pixels import open_rgb
from .view import evaluation_view

FORMAT = "vgg-runner-model-1"
WEIGHTS = "model.safetensors"
ABOUT = "model.json"
CHUNK = 8
"""Images that go through the network at once; the last ones are filled up, so that none depends on its batch."""


class ModelError(Exception):
    """A model's files are missing, damaged, or another's: one sentence."""


class Classifier:
    """Says what is in an image.

    Args:
        network: In evaluation mode, on the CPU.
        about: What `model.json` holds: classes, transform (resize, crop, interpolation), precision, …
        device: Where to compute; None: a GPU, if there is one.
    """

    def __init__(self, network: VGG, about: dict[str, Any], device: torch.device | str | None = None) -> None:
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.network = network.to(self.device)
        self.about = about
        self.classes: tuple[str, ...] = tuple(about["classes"])
        self.view = evaluation_view(**about["transform"])
        self.precision = precision(about.get("precision", "no"), self.device)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str | None = None) -> Classifier:
        """The model in a folder. Raises `ModelError`."""
        try:
            about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
            if about["format"] != FORMAT:
                raise ModelError(f"{folder} holds a model of another version ({_brief(about['format'])}).")
            if about["digest"] != seal(about):
                raise ModelError(f"{folder / ABOUT} is damaged (its digest differs); restore it.")
            with (folder / WEIGHTS).open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != about["sha256"]:
                    raise ModelError(f"{folder / WEIGHTS} is damaged (its digest differs); restore it.")
            network = build(about["network"], len(_classes(about)), _finite(load_file(folder / WEIGHTS)))
            _check_view(about)
            return cls(network, about, device)
        except FileNotFoundError as error:
            raise ModelError(f"There is no {error.filename}; a model is {ABOUT} beside {WEIGHTS}.") from None
        except OSError as error:
            raise ModelError(f"{error.filename} cannot be read ({error.strerror}).") from None
        except SafetensorError as error:
            raise ModelError(f"{folder / WEIGHTS} is damaged ({_brief(error)}); restore it.") from None
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise ModelError(f"{folder} holds no model of this version ({_brief(error)}).") from None

    def open(self, file: Path | str | BinaryIO) -> Tensor:
        """The view of an image file: uint8, 3 × crop × crop. Raises as `open_rgb` does."""
        view: Tensor = self.view(open_rgb(file))
        return view

    def logits(self, views: Tensor) -> Tensor:
        """Logits (n × classes, float32, on the CPU) of views (n × 3 × crop × crop, uint8)."""
        return torch.cat([self._chunk(chunk) for chunk in views.split(CHUNK)])

    def top(self, views: Tensor, count: int) -> list[list[tuple[str, float]]]:
        """For each view its `count` likeliest classes with their softmax probabilities, the likeliest first."""
        probabilities = self.logits(views).double().softmax(1)
        # A stable sort: of equal probabilities the class that comes first, on every device.
        values, places = probabilities.sort(dim=1, descending=True, stable=True)
        return [
            [(self.classes[place], value) for place, value in zip(row, numbers, strict=True)]
            for row, numbers in zip(places[:, :count].tolist(), values[:, :count].tolist(), strict=True)
        ]

    def _chunk(self, views: Tensor) -> Tensor:
        missing = CHUNK - len(views)
        images = torch.cat([views, views.new_zeros(missing, *views.shape[1:])]) if missing else views
        with torch.inference_mode(), self._autocast():
            return self.network(images.to(self.device))[: len(views)].float().cpu()

    def _autocast(self) -> Any:
        if self.precision == "no":
            return nullcontext()
        kind = torch.bfloat16 if self.precision == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype=kind)


def _classes(about: dict[str, Any]) -> list[str]:
    """The classes' names. Raises ValueError where they are no list of different names."""
    names = about["classes"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its classes are no names")
    if len(set(names)) != len(names):
        raise ValueError("two of its classes have the same name")
    return names


def _check_view(about: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError where the views are none that the network can see."""
    resize, crop, pool = (
        *(about["transform"][name] for name in ("resize", "crop")),
        about["network"]["pool"],
    )
    if not all(type(number) is int for number in (resize, crop, pool)):
        raise TypeError("the sizes of its views are no whole numbers")
    if not (32 <= crop <= resize <= 10_000 and pool >= 1):
        raise ValueError(f"its views cannot be cut to {crop} of {resize} pixels and pooled to {pool}")


def _finite(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors. Raises ValueError where they are none to compute with."""
    for name, value in state.items():
        counts = name.endswith("num_batches_tracked")
        if not counts and (value.dtype != torch.float32 or not torch.isfinite(value).all()):
            raise ValueError(f"{name} is not made of finite numbers in float32")
    return state


def _brief(what: object) -> str:
    """In a message: on one line, and not too long."""
    line = "".join(each if each.isprintable() else " " for each in str(what)[:1000])
    return " ".join(line.split())[:300]


def seal(about: dict[str, Any]) -> str:
    """The digest of a description, all of it but this very digest."""
    rest = {name: value for name, value in about.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
