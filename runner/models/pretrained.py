"""Pretrained weights: where they come from, what they say of themselves, and whether they fit."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import safetensors
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor

from runner.config.schema import ModelConfig, Normalization
from runner.config.validation import check_weights, is_file
from runner.models.network import TransferModel
from runner.utils.downloads import download_timeout
from runner.utils.errors import UserError
from runner.utils.text import one_line

NORMALIZATION_KEY = "normalisation"
"""Metadata key under which a .safetensors file may say, as JSON {"mean": […], "std": […]}, what it expects."""


@dataclass(frozen=True)
class PretrainedWeights:
    """Tensors under torchvision's names, and the normalisation they were trained with where that is known."""

    source: str
    tensors: dict[str, Tensor]
    normalization: Normalization | None


def read_weights(settings: ModelConfig) -> PretrainedWeights | None:
    """The weights that an experiment names; None for random ones. Downloads an enum's where they are not there.

    Raises `UserError` for a missing, damaged or malicious file, and for a failed download.
    """
    check_weights(settings)
    name = settings.weights
    if name is None:
        return None
    if not is_file(name):
        return _from_enum(name)
    path = Path(name).expanduser()
    return _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)


def weights_normalization(enum: str) -> Normalization:
    """What a torchvision weights enum normalises with. Raises `UserError` where there is no such enum."""
    transforms = _enum(enum).transforms()
    try:
        return Normalization(tuple(transforms.mean), tuple(transforms.std))
    except AttributeError:
        raise UserError(
            f"{enum} says no mean and std; name weights of a classifier, or give numbers."
        ) from None


def load_weights(network: TransferModel, weights: PretrainedWeights) -> None:
    """Copy weights into all of the network but its head.

    Raises `UserError` naming what is missing, unexpected, of another shape or not finite.
    """
    own = {name: value for name, value in network.state_dict().items() if not name.startswith("normalize.")}
    wanted = {name: value for name, value in own.items() if not name.startswith(f"{network.head_name}.")}
    given = {
        name: value for name, value in weights.tensors.items() if not name.startswith(f"{network.head_name}.")
    }
    missing = [name for name in wanted if name not in given and not name.endswith("num_batches_tracked")]
    if missing:
        remedy = "they are of another network (model.arch)"
        if all(name.startswith("classifier.") for name in missing):
            remedy = "these weights have no classifier: set model.head=pooled"
        raise UserError(f"{weights.source} lacks {_some(missing)}; {remedy}.")
    if unexpected := [name for name in given if name not in wanted]:
        raise UserError(
            f"{weights.source} holds {_some(unexpected)}, unknown to {network.spec.arch}."
        )
    for name, value in given.items():
        if value.shape != wanted[name].shape:
            raise UserError(
                f"{weights.source}: {name} has the shape {list(value.shape)}, but {network.spec.arch} needs"
                f" {list(wanted[name].shape)}; set model.arch to the network that the weights are of."
            )
        real = (
            value.is_floating_point() == wanted[name].is_floating_point()
        )  # batch normalisation counts in integers
        if not real or value.layout != torch.strided or value.is_meta:
            raise UserError(
                f"{weights.source}: {name} is a tensor of another kind ({_kind(value)}); save it as plain numbers,"
                " best as .safetensors."
            )
        if not torch.isfinite(value).all():
            raise UserError(f"{weights.source}: {name} holds NaN or infinite numbers; use other weights.")
    network.load_state_dict({**own, **given}, strict=False)


def _from_enum(name: str) -> PretrainedWeights:
    enum = _enum(name)
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        with download_timeout():
            tensors = enum.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
    except (pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"The file of {name} in {folder} is damaged ({' '.join(str(error).split())[:200]});"
            " delete it and start again."
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights {name} could not be downloaded ({error}); fetch {enum.url} and put it into {folder},"
            " or set model.weights to a file you have."
        ) from None
    return PretrainedWeights(name, tensors, weights_normalization(name))


def _enum(name: str) -> torchvision.models.WeightsEnum:
    try:
        return torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError, TypeError):
        module = name.partition(".")[0]
        members = getattr(getattr(torchvision.models, module, None), "__members__", {})
        known = f"; {module} has {', '.join(members)}" if members else ""
        raise UserError(
            f"torchvision has no weights {name!r}{known}; normalisation and weights are named as"
            " VGG16_Weights.IMAGENET1K_V1."
        ) from None


def _from_safetensors(path: Path) -> PretrainedWeights:
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(NORMALIZATION_KEY)
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is not a whole .safetensors file ({one_line(str(error), 300)}).") from None
    normalization = None
    if said is not None:
        try:
            normalization = _numbers(json.loads(said))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            raise UserError(
                f"{path}: its metadata {NORMALIZATION_KEY!r} is not {{mean: …, std: …}}"
                " of three numbers each, std above 0."
            ) from None
    return PretrainedWeights(str(path), tensors, normalization)


def _numbers(said: dict[str, list[float]]) -> Normalization:
    mean, std = ([float(value) for value in said[name]] for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(said)
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _from_pickle(path: Path) -> PretrainedWeights:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is no PyTorch file, or holds more than tensors (pickled code or objects), and was not loaded;"
            " save its state_dict alone, best as .safetensors."
        ) from None
    except Exception as error:  # what somebody has made up is opened too, and raises nearly anything
        reason = one_line(str(error), 300) or type(error).__name__
        raise UserError(f"{path} is not a whole PyTorch file ({reason}).") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    pairs = content.items() if isinstance(content, dict) else [(None, content)]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
        raise UserError(f"{path} holds no state_dict (names and tensors).")
    return PretrainedWeights(str(path), {name.removeprefix("module."): value for name, value in content.items()}, None)


def _kind(value: Tensor) -> str:
    return "without values" if value.is_meta else f"{value.dtype}, {value.layout}".replace("torch.", "")


def _some(names: Collection[str]) -> str:
    first = ", ".join(one_line(name, 80) for name in list(names)[:3])
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")
