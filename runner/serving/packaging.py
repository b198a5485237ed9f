"""Saves a trained model as an MLflow model: weights (safetensors), description (JSON) and the code to load them."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import logging
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from runner.config.schema import Experiment
from runner.data.transforms import evaluation_settings
from runner.models import checkpoint
from runner.models.transfer_model import TransferModel
from runner.portable.backbones.timm_networks import PREFIX
from runner.portable.classifier import (
    DESCRIPTION_FILE,
    FORMAT,
    FROZEN_FILE,
    WEIGHTS_FILE,
    Classifier,
    description_digest,
)
from runner.portable.model import build_model
from runner.utils.atomic_files import sync_tree, write_text
from runner.utils.paths import PACKAGE
from runner.utils.tensors import save_tensors

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

PORTABLE = PACKAGE / "portable"
CARD_FILE = "README.md"
REQUIREMENTS = ("mlflow", "numpy", "pillow", "safetensors", "torch", "torchvision")
"""Packages that a logged model needs, in the versions that it was made with; a network of timm also timm."""


def inference_settings(experiment: Experiment) -> dict[str, Any]:
    """What inference needs besides the model itself: name, transform, precision, and depth unless it is "auto"."""
    depth = experiment.data.depth
    return {
        **({} if depth == "auto" else {"depth": depth}),
        "name": experiment.name,
        "transform": evaluation_settings(experiment.augment),
        "precision": experiment.train.precision,
    }


def describe(model: TransferModel, inference: dict[str, Any], **origin: Any) -> dict[str, Any]:
    """The content of model.json, without its digests.

    Args:
        model: Its architecture and classes are described.
        inference: From `inference_settings`.
        origin: Where the model comes from: epoch, validation results, run and manifest.
    """
    architecture = dataclasses.asdict(model.spec)
    classes = architecture.pop("classes")
    del architecture["trainable"]
    return {"format": FORMAT, **inference, "model": architecture, "classes": list(classes), **origin}


def to_classifier(
    model: TransferModel, description: dict[str, Any], device: torch.device | str | None = None
) -> Classifier:
    """A copy of a trained model, ready for inference."""
    state = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
    copy = build_model(description["model"], len(description["classes"]), state)
    return Classifier(copy, description, device)


def save_model(
    model: TransferModel,
    description: dict[str, Any],
    example: Tensor,
    folder: Path,
    shared: Path | None = None,
    card: str = "",
) -> None:
    """Write a model as an MLflow model.

    Args:
        model: With its final weights.
        description: From `describe`.
        example: An image (3 × crop × crop, uint8) for the input example.
        folder: Where to write to; it must not exist.
        shared: Of `checkpoint.save_frozen`.
        card: The model card, which becomes README.md.
    """
    with warnings.catch_warnings(action="ignore"):  # of its own models' types
        import mlflow.pyfunc

    # MLflow copies what it is given twice, by way of the folder for temporary files: so only the description.
    described, weights = folder.parent / "classifier", folder.parent / "weights"
    _write_classifier(model, description, described, weights, shared)
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    # MLflow warns of missing type hints, though the signature has the types. It changes the warning filters itself,
    # so that its warnings must be recorded to be silenced.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(PORTABLE / "serve.py"),
            artifacts={"classifier": str(described)},
            code_paths=[str(PORTABLE)],
            signature=_signature(),
            input_example={"image": [_base64(example)]},
            pip_requirements=[f"{name}=={version(name)}" for name in _requirements(description)],
            metadata={"classes": len(description["classes"]), "epoch": description["epoch"]},
        )
    shutil.rmtree(described)
    mlmodel = mlflow.models.Model.load(folder)
    for path in weights.iterdir():
        mlmodel.model_size_bytes = (mlmodel.model_size_bytes or 0) + path.stat().st_size
        path.replace(folder / "artifacts" / "classifier" / path.name)
    weights.rmdir()
    if card:
        write_text(folder / CARD_FILE, card)
    mlmodel.save(folder / "MLmodel")
    sync_tree(folder)


def _write_classifier(
    model: TransferModel, description: dict[str, Any], described: Path, weights: Path, shared: Path | None
) -> None:
    """Write the three files that `Classifier.load` reads: model.json into one folder, the weights into another."""
    for folder in (described, weights):
        shutil.rmtree(folder, ignore_errors=True)  # an incomplete one of an interrupted run
        folder.mkdir(parents=True)
    checkpoint.save_frozen(model, weights, shared)
    state = {name: value.detach().cpu().contiguous() for name, value in model.trainable_state().items()}
    save_tensors(state, weights / WEIGHTS_FILE, {"format": description["format"]}, weights / WEIGHTS_FILE)
    digests = {"sha256": _sha256(weights / WEIGHTS_FILE), "frozen_sha256": _sha256(weights / FROZEN_FILE)}
    content = json.loads(json.dumps({**description, **digests}))  # as it will be read
    content["digest"] = description_digest(content)
    write_text(described / DESCRIPTION_FILE, json.dumps(content, indent=1, ensure_ascii=False))


def _requirements(description: dict[str, Any]) -> list[str]:
    return sorted([*REQUIREMENTS, *["timm"] * description["model"]["arch"].startswith(PREFIX)])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    probability = Object([Property("class", DataType.string), Property("probability", DataType.double)])
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema([ColSpec(Array(probability), "top")]),
        params=ParamSchema([ParamSpec("top", DataType.long, 5)]),
    )


def _base64(image: Tensor) -> str:
    file = io.BytesIO()
    functional.to_pil_image(image).save(file, "png")
    return base64.b64encode(file.getvalue()).decode("ascii")
