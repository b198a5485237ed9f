"""Checkpoints: what was learned in a small file for each, what stayed frozen once beside them.

`frozen.safetensors` holds the layers that did not train, `best.safetensors` and `last.safetensors` those that
did, with everything needed to build the network again. A checkpoint names the frozen file's digest and is
refused beside another one.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from runner.config.schema import Normalization
from runner.models.network import ModelSpec, TransferModel
from runner.utils.atomic_files import atomic_write
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.tensors import save_tensors, tensor_digest
from runner.utils.text import one_line

FORMAT = "vgg-runner-checkpoint-1"
FROZEN_FILE = "frozen.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A network as it was at the end of an epoch (from 1), with its validation scores."""

    model: TransferModel
    epoch: int
    val: dict[str, Any]
    inference: dict[str, Any]
    """What using it takes beside the network: name, transform, precision."""


def frozen_digest(network: TransferModel) -> str:
    """Digest of the tensors that do not train."""
    return _digest(network.frozen_state())


def save_frozen(network: TransferModel, folder: Path) -> None:
    """Write the layers that do not train to `folder`/frozen.safetensors."""
    _save(folder / FROZEN_FILE, network.frozen_state(), {"format": FORMAT})


def save(
    network: TransferModel, path: Path, epoch: int, val: dict[str, Any], frozen: str, use: dict[str, Any]
) -> None:
    """Write the layers that train, and what is needed to use them.

    Args:
        network: Unwrapped.
        path: The file, which is replaced whole.
        epoch: Its number, from 1.
        val: Validation scores by name.
        frozen: `frozen_digest` of the network.
        use: The experiment's name, the transform of its evaluation, and its precision.
    """
    learned = network.trainable_state()
    about = {
        "architecture": asdict(network.spec),
        "epoch": epoch,
        "val": val,
        "use": use,
        "frozen": frozen,
        "learned": _digest(learned),
    }
    text = json.dumps(about)
    _save(path, learned, {"format": FORMAT, "about": text, "seal": description_digest(text)})


def load(path: Path) -> Checkpoint:
    """The network of a checkpoint, in evaluation mode on the CPU, with frozen.safetensors from beside it.

    Raises `UserError` where a file is missing, damaged, not a checkpoint, or does not belong to the other.
    """
    learned, metadata = _load(path)
    frozen, _ = _load(path.parent / FROZEN_FILE)
    try:
        if metadata.get("seal", description_digest(metadata["about"])) != description_digest(metadata["about"]):  # older ones have none
            raise UserError(
                f"{path} is damaged (its description's digest differs); restore it or train again."
            )
        about = json.loads(metadata["about"])
        _check(about)
        fields = about["architecture"]
        normalization = Normalization(*(tuple(fields["normalization"][name]) for name in ("mean", "std")))
        architecture = ModelSpec(
            **{**fields, "classes": tuple(fields["classes"]), "normalization": normalization}
        )
        network = TransferModel(architecture, training_seed=0, random=False)
        network.load_state_dict({**frozen, **learned}, strict=True)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is not a checkpoint of this version ({one_line(str(error), 300)}).") from None
    if frozen_digest(network) != about["frozen"]:
        raise UserError(
            f"{path.parent / FROZEN_FILE} is not the one that {path.name} was trained on; restore that one."
        )
    if _digest(network.trainable_state()) != about["learned"]:
        raise UserError(f"{path} is damaged (its digest differs); restore it or train again.")
    if not all(bool(torch.isfinite(value).all()) for value in network.state_dict().values()):
        raise UserError(f"{path} holds NaN or infinite weights; use another checkpoint, or train again.")
    return Checkpoint(network.eval(), about["epoch"], about["val"], about.get("use", {}))


def description_digest(about: str) -> str:
    """The digest of a description: another class name or score would be one like any other."""
    return digest("about", about)


def _check(about: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError where a description is not what `save` writes."""
    classes, epoch = about["architecture"]["classes"], about["epoch"]
    if not all(isinstance(each, str) for each in classes) or not 1 < len(set(classes)) == len(classes):
        raise ValueError("its classes are no list of different names")
    if type(epoch) is not int or epoch < 1:
        raise ValueError("its epoch is no number from 1")
    if not isinstance(about["val"], dict) or not isinstance(about.get("use", {}), dict):
        raise TypeError("its scores or its use are no groups")


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest({name: tensor_digest(value) for name, value in tensors.items()})


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path) as aside:
        save_tensors(tensors, aside, metadata, path)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"There is no {path}; a checkpoint needs {FROZEN_FILE} beside it.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is damaged ({one_line(str(error), 300)}); restore it or train again.") from None
    if metadata.get("format") != FORMAT:
        said = one_line(repr(metadata.get("format")), 100)
        raise UserError(f"{path} is no checkpoint of this runner (its format is {said}).")
    return tensors, metadata
