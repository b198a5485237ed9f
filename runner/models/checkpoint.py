"""Checkpoints: one small file per saved epoch with the layers that train, and one shared file with the frozen layers.

`frozen.safetensors` is written once per run, and takes space once for all runs that have the same (`save_frozen`).
`best.safetensors` and `last.safetensors` hold the layers that train and everything needed to build the model again.
They store the digest of the frozen file and are refused beside another one.
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
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.portable.head import HeadSpec, build_head
from runner.portable.model import build_backbone, pooled_features
from runner.portable.variants import VariantSpec
from runner.utils.atomic_files import atomic_write
from runner.utils.errors import UserError
from runner.utils.hard_links import write_once
from runner.utils.hashing import digest
from runner.utils.tensors import save_tensors, tensor_digest
from runner.utils.text import one_line

FORMAT = "vgg-runner-checkpoint-2"
FROZEN_FILE = "frozen.safetensors"
MOST_LEVELS = 1000
"""Of a pyramid; more are a sign of damage, and would take long to build."""


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was at the end of an epoch (from 1)."""

    model: TransferModel
    epoch: int
    val: dict[str, Any]
    """Validation results by name."""
    inference: dict[str, Any]
    """What inference needs besides the model: the experiment's name, transform and precision."""


def frozen_digest(model: TransferModel) -> str:
    """Digest of the tensors that do not train."""
    return _digest(model.frozen_state())


def stored_frozen_digest(path: Path) -> str:
    """`frozen_digest` of a checkpoint's model, read from its description alone. The file is not checked."""
    with safe_open(path, "pt") as file:
        return str(json.loads(file.metadata()["description"])["frozen"])


def save_frozen(model: TransferModel, folder: Path, shared: Path | None = None) -> None:
    """Write the layers that do not train to `folder`/frozen.safetensors.

    Args:
        model: Not wrapped by Accelerate.
        folder: Where to write to.
        shared: A folder on the same file system. All files with the same layers are hard links to one file there,
            which is named by their digest. None: `folder` gets a file of its own.
    """
    tensors = model.frozen_state()

    def write(path: Path) -> None:
        _save(path, tensors, {"format": FORMAT})

    if shared is None:
        write(folder / FROZEN_FILE)
        return
    file = shared / f"{_digest(tensors)}.safetensors"
    write_once(folder / FROZEN_FILE, file, write, lambda path: _holds(path, tensors))


def save(
    model: TransferModel,
    path: Path,
    epoch: int,
    val: dict[str, Any],
    frozen: str,
    inference: dict[str, Any],
) -> None:
    """Write the layers that train, and what is needed to use them.

    Args:
        model: Not wrapped by Accelerate.
        path: The file, which is replaced atomically.
        epoch: Its number, from 1.
        val: Validation results by name.
        frozen: `frozen_digest` of the model.
        inference: As in `Checkpoint`.
    """
    trainable = model.trainable_state()
    description = {
        "model": asdict(model.spec),
        "epoch": epoch,
        "val": val,
        "inference": inference,
        "frozen": frozen,
        "trainable": _digest(trainable),
    }
    text = json.dumps(description)
    metadata = {"format": FORMAT, "description": text, "description_digest": description_digest(text)}
    _save(path, trainable, metadata)


def load(path: Path) -> Checkpoint:
    """Load a checkpoint, and frozen.safetensors beside it, in evaluation mode on the CPU.

    Raises `UserError` if a file is missing, damaged, not a checkpoint, or of another run.
    """
    trainable, metadata = _load(path)
    frozen, _ = _load(path.parent / FROZEN_FILE)
    try:
        text = metadata["description"]
        if metadata["description_digest"] != description_digest(text):
            raise UserError(
                f"{path} is damaged (its description's digest differs); restore it or train again."
            )
        description = json.loads(text)
        _check(description)
        fields = description["model"]
        normalization = Normalization(*(tuple(fields["normalization"][name]) for name in ("mean", "std")))
        fields = {name: tuple(value) if type(value) is list else value for name, value in fields.items()}
        spec = ModelSpec(**{**fields, "normalization": normalization})
        _check_head(spec, trainable)
        model = TransferModel(spec, training_seed=0, random_weights=False)
        model.load_state_dict({**frozen, **trainable}, strict=True)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path} is not a checkpoint of this version ({one_line(str(error), 300)})."
        ) from None
    if frozen_digest(model) != description["frozen"]:
        raise UserError(
            f"{path.parent / FROZEN_FILE} does not belong to {path.name}; restore the one that it was trained with."
        )
    if _digest(model.trainable_state()) != description["trainable"]:
        raise UserError(f"{path} is damaged (its digest differs); restore it or train again.")
    if not all(bool(torch.isfinite(value).all()) for value in model.state_dict().values()):
        raise UserError(f"{path} holds NaN or infinite weights; use another checkpoint, or train again.")
    return Checkpoint(model.eval(), description["epoch"], description["val"], description["inference"])


def description_digest(text: str) -> str:
    """Digest of a description: without it, a changed class name or score would not be noticed."""
    return digest("description", text)


def _check(description: dict[str, Any]) -> None:
    """Raises ValueError, KeyError or TypeError unless the description is one that `save` writes."""
    classes, epoch = description["model"]["classes"], description["epoch"]
    if not all(isinstance(name, str) for name in classes) or not 1 < len(set(classes)) == len(classes):
        raise ValueError("its classes are not a list of two or more distinct names")
    if type(epoch) is not int or epoch < 1:
        raise ValueError("its epoch is not a whole number from 1")
    if not isinstance(description["val"], dict) or not isinstance(description["inference"], dict):
        raise TypeError("its validation results or inference settings are not tables")


def _check_head(spec: ModelSpec, trainable: dict[str, Tensor]) -> None:
    """Raises ValueError, KeyError or TypeError if a description's head has more values than the file: it is damaged."""
    head, variants = HeadSpec.of(vars(spec)), VariantSpec.of(vars(spec))
    if not isinstance(spec.pool, int) and len(spec.pool) > MOST_LEVELS:
        raise ValueError("its pyramid has too many levels")
    backbone = build_backbone(spec.arch, spec.head, spec.pool, spec.input_size)
    features = pooled_features(backbone, head, variants)
    with torch.device("meta"):
        parameters = build_head(head, features, len(spec.classes)).parameters()
    if sum(each.numel() for each in parameters) > sum(each.numel() for each in trainable.values()):
        raise ValueError("its head is larger than what it holds")


def _digest(tensors: dict[str, Tensor]) -> str:
    return digest({name: tensor_digest(value) for name, value in tensors.items()})


def _holds(path: Path, tensors: dict[str, Tensor]) -> bool:
    """Whether a file holds these tensors and no others."""
    try:
        return _digest(_load(path)[0]) == _digest(tensors)
    except UserError:
        return False


def _save(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with atomic_write(path) as temporary:
        save_tensors(tensors, temporary, metadata, path)


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
    except FileNotFoundError:
        raise UserError(f"There is no {path}; a checkpoint needs {FROZEN_FILE} beside it.") from None
    except SafetensorError as error:
        raise UserError(
            f"{path} is damaged ({one_line(str(error), 300)}); restore it or train again."
        ) from None
    if metadata.get("format") != FORMAT:
        found = one_line(repr(metadata.get("format")), 100)
        raise UserError(f"{path} is not a checkpoint of this version of the runner (its format is {found}).")
    return tensors, metadata
