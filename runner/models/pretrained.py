"""Reads pretrained weights from torchvision or a file, checks them and loads them into a model."""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision
from safetensors.torch import load_file
from torch import Tensor
from torchvision.models.vision_transformer import interpolate_embeddings

from runner.config.choices import ARCHITECTURES
from runner.config.schema import ModelConfig, Normalization
from runner.config.validation import NORMALIZATION_KEYS, check_weights, is_file
from runner.models.timm_weights import cached_file, download_folder, fitted, read_timm, torch_folder
from runner.models.transfer_model import TransferModel
from runner.portable.backbones.timm_networks import PACKAGE, PREFIX
from runner.portable.model import is_within
from runner.utils.downloads import download_timeout
from runner.utils.errors import UserError
from runner.utils.paths import cache_folder
from runner.utils.text import one_line

WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which checkpoints of training programs hold the weights."""


@dataclass(frozen=True)
class PretrainedWeights:
    """Tensors by their names in the architecture, and the normalization they were trained with if it is known."""

    source: str
    tensors: dict[str, Tensor]
    normalization: Normalization | None


def read_weights(
    settings: ModelConfig, size: int | None = None, cache: str | Path = "auto"
) -> PretrainedWeights | None:
    """The weights that `model.weights` names, downloaded if necessary; None for random weights.

    Args:
        settings: Name the weights.
        size: Height and width of the images, for networks whose weights depend on it; None: the usual ones.
        cache: The setting of that name; the folder keeps weights that had to be converted.

    Raises `UserError` for a missing, damaged or malicious file, a failed download, and a file that does not say which
    normalization it expects if `model.normalize` asks for that.
    """
    check_weights(settings)
    name = settings.weights
    if name is None:
        return None
    if not is_file(name):
        backbone = ARCHITECTURES.find(settings.arch).implementation
        if backbone.weights_enum:
            return _fitted(settings.arch, _from_enum(name), size)
        size = size or backbone.preprocessing(name).crop
        tensors = read_timm(settings.arch, name, size, cache_folder(cache))
        return PretrainedWeights(name, tensors, named_normalization(settings))
    path = Path(name).expanduser()
    weights = _from_safetensors(path) if path.suffix == ".safetensors" else _from_pickle(path)
    return _fitted(settings.arch, weights, size)


def _fitted(arch: str, weights: PretrainedWeights, size: int | None) -> PretrainedWeights:
    """Weights for images of a size, as far as the library knows how to fit them; others as they are."""
    if size is None:
        return weights
    if arch.startswith(PREFIX):
        return dataclasses.replace(weights, tensors=fitted(arch, weights.tensors, size))
    if arch.startswith("vit_"):
        patch_size = int(arch.rpartition("_")[2])
        with suppress(KeyError, ValueError):  # weights of another architecture
            tensors = interpolate_embeddings(size, patch_size, OrderedDict(weights.tensors))
            return dataclasses.replace(weights, tensors=dict(tensors))
    return weights


@dataclass(frozen=True)
class Download:
    """A file of weights that is not on this host."""

    name: str
    """Value of `model.weights`."""
    size: str
    """Of the file, for people; empty if its source does not state it."""
    folder: Path

    def __str__(self) -> str:
        return f"{self.name}{f' ({self.size})' if self.size else ''} into {self.folder}"


def missing_download(settings: ModelConfig) -> Download | None:
    """What `read_weights` would download; None if nothing.

    Raises `UserError` for weights that do not exist or cannot work.
    """
    check_weights(settings)
    if settings.weights is None or is_file(settings.weights):
        return None
    if not ARCHITECTURES.find(settings.arch).implementation.weights_enum:
        tag = settings.arch, settings.weights
        is_here = settings.weights == PACKAGE or cached_file(*tag)
        return None if is_here else Download(settings.weights, "", download_folder(*tag))
    member, folder = _enum_member(settings.weights), torch_folder()
    if (folder / member.url.rpartition("/")[2]).is_file():
        return None
    megabytes = member.meta.get("_file_size")
    return Download(settings.weights, f"{megabytes:.0f} MB" if megabytes else "", folder)


def weights_normalization(name: str) -> Normalization:
    """The normalization that a member of a torchvision weights enum expects. Raises `UserError` if there is none."""
    transforms = _enum_member(name).transforms()
    try:
        return Normalization(tuple(transforms.mean), tuple(transforms.std))
    except AttributeError:
        raise UserError(
            f"{name} states no mean and std; name weights of an image classifier, or give numbers."
        ) from None


def named_normalization(settings: ModelConfig) -> Normalization:
    """The normalization of `model.weights`, which is no file. Raises `UserError` as `weights_normalization`."""
    backbone = ARCHITECTURES.find(settings.arch).implementation
    if backbone.weights_enum:
        return weights_normalization(str(settings.weights))
    usual = backbone.preprocessing(settings.weights)
    return Normalization(_triple(usual.mean), _triple(usual.std))


def load_weights(model: TransferModel, weights: PretrainedWeights) -> None:
    """Copy weights into the backbone; the head stays as it is.

    Raises `UserError` for tensors that are missing, unexpected, of another shape or not finite. Then nothing is copied.
    """
    expected = {
        name: value
        for name, value in model.state_dict().items()
        if not is_within(name, "normalize") and not is_within(name, model.head_name)
    }
    prefixed = {f"{model.weights_prefix}{name}": value for name, value in weights.tensors.items()}
    given = {
        name: value
        for name, value in prefixed.items()
        if not is_within(name, model.head_name) and name not in model.unused
    }
    # Old files lack the counts of batch normalization.
    if missing := [n for n in expected if n not in given and not n.endswith("num_batches_tracked")]:
        raise UserError(f"{weights.source} lacks {_listed(missing)}; {_remedy(model, missing)}.")
    if unexpected := [name for name in given if name not in expected]:
        plain = [name for name in unexpected if not name.endswith("num_batches_tracked")] or unexpected
        raise UserError(
            f"{weights.source} holds {_listed(plain)}, unknown to {model.spec.arch}: they are for another architecture;"
            " set model.arch to it."
        )
    for name, value in given.items():
        if fault := _fault(value, expected[name], model.spec.arch):
            raise UserError(f"{weights.source}: {name} {fault}.")
    model.load_state_dict(given, strict=False)


def _remedy(model: TransferModel, missing: Collection[str]) -> str:
    classifier = model.layer_names[model.pooling_index :]
    if all(any(is_within(name, layer) for layer in classifier) for name in missing):
        return "these weights have no classifier: set model.head=pooled"
    return "they are for another architecture: set model.arch to it"


def _fault(value: Tensor, expected: Tensor, arch: str) -> str:
    """What is wrong with a tensor, and how to fix it; empty if nothing is."""
    if value.shape != expected.shape:
        return (
            f"has the shape {list(value.shape)}, but {arch} needs {list(expected.shape)};"
            " set model.arch to the architecture of the weights"
        )
    same_kind = value.is_floating_point() == expected.is_floating_point()  # counts of batches are integers
    if not same_kind or value.layout != torch.strided or value.is_meta:
        kind = "without values" if value.is_meta else f"{value.dtype}, {value.layout}".replace("torch.", "")
        return f"is a tensor of the wrong kind ({kind}); save it as a dense tensor, best as .safetensors"
    if not torch.isfinite(value).all():
        return "holds NaN or infinite numbers; use other weights"
    return ""


def _from_enum(name: str) -> PretrainedWeights:
    member = _enum_member(name)
    folder = torch_folder()
    try:
        with download_timeout():
            tensors = member.get_state_dict(
                progress=False, check_hash=True, map_location="cpu", weights_only=True
            )
    except (pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            f"The file of {name} in {folder} is damaged ({' '.join(str(error).split())[:200]});"
            " delete it and start again."
        ) from None
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights {name} could not be downloaded ({error}); download {member.url} into {folder} yourself,"
            " or set model.weights to a file that you have."
        ) from None
    return PretrainedWeights(name, tensors, weights_normalization(name))


def _enum_member(name: str) -> torchvision.models.WeightsEnum:
    try:
        return torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError, TypeError):
        enum = name.partition(".")[0]
        members = getattr(getattr(torchvision.models, enum, None), "__members__", {})
        known = f"; {enum} has {', '.join(members)}" if members else ""
        raise UserError(
            f"torchvision has no weights {name!r}{known}; give a name such as VGG16_Weights.IMAGENET1K_V1."
        ) from None


def _from_safetensors(path: Path) -> PretrainedWeights:
    try:
        tensors = load_file(path)
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        stated = next((metadata[key] for key in NORMALIZATION_KEYS if key in metadata), None)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is not a complete .safetensors file ({one_line(str(error), 300)})."
        ) from None
    normalization = None
    if stated is not None:
        try:
            normalization = _parse_normalization(json.loads(stated))
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
            raise UserError(
                f"{path}: its metadata {NORMALIZATION_KEYS[0]!r} must be JSON {{mean: …, std: …}}"
                " with three numbers each, std above 0."
            ) from None
    return PretrainedWeights(str(path), _without_wrappers(path, tensors), normalization)


def _triple(values: Sequence[float]) -> tuple[float, float, float]:
    return (values[0], values[1], values[2])


def _parse_normalization(stated: Any) -> Normalization:
    mean, std = ([float(value) for value in stated[name]] for name in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, mean + std)) or min(std) <= 0:
        raise ValueError(stated)
    return Normalization((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _from_pickle(path: Path) -> PretrainedWeights:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what the refusal says, in torch's words
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is no PyTorch file, or holds more than tensors (code or other objects), and was not loaded;"
            " save its state_dict alone, best as .safetensors."
        ) from None
    except Exception as error:  # a damaged or forged file can raise nearly anything
        reason = one_line(str(error), 300)
        shown = f" ({reason})" if " " in reason else ""
        raise UserError(f"{path} is not a complete PyTorch file{shown}.") from None
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    pairs = content.items() if isinstance(content, dict) else [(None, content)]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in pairs):
        raise UserError(f"{path} holds no state_dict (tensors by name).")
    return PretrainedWeights(str(path), _without_wrappers(path, content), None)


def _without_wrappers(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors without what DistributedDataParallel (module.) and torch.compile (_orig_mod.) add to their names."""
    plain = {name.replace("_orig_mod.", "").removeprefix("module."): tensors[name] for name in tensors}
    if len(plain) < len(tensors):
        raise UserError(
            f"{path} holds some tensors twice, with and without module. or _orig_mod.; save one state_dict."
        )
    return plain


def _listed(names: Collection[str]) -> str:
    first = ", ".join(one_line(name, 80) for name in list(names)[:3])
    return first + (f" and {len(names) - 3} more" if len(names) > 3 else "")
