"""A run's best network as a folder that MLflow can serve and anyone can load: safetensors, JSON, a little code."""

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
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from runner.config.schema import Experiment
from runner.data.transforms import CLEAN, transform
from runner.models.network import Network
from runner.portable.classifier import ABOUT, FORMAT, WEIGHTS, Classifier, seal
from runner.portable.network import build
from runner.tracking.model_registry import registered_name
from runner.tracking.tracker import Tracker
from runner.training.loop import Epoch
from runner.training.setup import Prepared
from runner.utils.atomic_files import flush, write_text
from runner.utils.paths import PACKAGE
from runner.utils.tensors import write

PORTABLE = PACKAGE / "portable"
NEEDED = ("mlflow", "numpy", "pillow", "safetensors", "torch", "torchvision")
"""Packages that a logged model asks for, in the versions that it was made with."""


def use(experiment: Experiment) -> dict[str, Any]:
    """What using a network of an experiment takes beside it: name, transform, precision."""
    return {
        "name": experiment.name,
        "transform": transform(experiment.augment),
        "precision": experiment.train.precision,
    }


def about(network: Network, use: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a model says of itself: everything needed to use it, and where it comes from."""
    shape = dataclasses.asdict(network.architecture)
    classes = shape.pop("classes")
    del shape["trainable"]
    return {"format": FORMAT, **use, "network": shape, "classes": list(classes), **more}


def publish(ready: Prepared, best: Epoch, tracker: Tracker) -> None:
    """Log and register a run's best network, which `ready` holds, with the epoch that it is of."""
    experiment, network, manifest = ready.experiment, ready.network, ready.manifest
    if not experiment.tracking.model or tracker.recorded("model"):
        return
    told = about(
        network, use(experiment), epoch=best.number, val=best.val.as_dict(), run=tracker.run_id,
        manifest=manifest.digest,
    )  # fmt: skip
    first = manifest.select("val")[:1]
    example = next(ready.loader.batches(first, CLEAN, [[0]]))[0]
    folder = tracker.room("model")
    shutil.rmtree(folder, ignore_errors=True)  # half a one of an interrupted run
    pack(network, told, example, folder)
    metrics = best.val.metrics("val")
    score = f"val/{experiment.train.best}"
    tracker.model(
        folder,
        {
            "name": registered_name(experiment.name),
            "metrics": metrics,
            "score": score,
            "value": metrics[score],
            "manifest": manifest.digest,
            "step": best.number,
        },
    )


def classifier(
    network: Network, told: dict[str, Any], device: torch.device | str | None = None
) -> Classifier:
    """A trained network as what predicts: a copy."""
    state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}
    return Classifier(build(told["network"], len(told["classes"]), state), told, device)


def pack(network: Network, told: dict[str, Any], example: Tensor, folder: Path) -> None:
    """Write the model of a network into `folder`, which must not be there yet.

    Args:
        network: With the weights of the model.
        told: As `about` gives it.
        example: A view (3 × crop × crop, uint8) for the input example.
        folder: Becomes an MLflow model.
    """
    with warnings.catch_warnings():  # of its own models' types
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    files = folder.parent / "classifier"
    files.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    write(state, files / WEIGHTS, {"format": told["format"]}, folder / WEIGHTS)
    with (files / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    told = json.loads(json.dumps({**told, "sha256": digest}))  # as it will be read
    told["digest"] = seal(told)
    write_text(files / ABOUT, json.dumps(told, indent=1, ensure_ascii=False))
    logging.getLogger("mlflow.pyfunc").setLevel(logging.WARNING)
    guess = Object([Property("class", DataType.string), Property("probability", DataType.double)])
    # It wants types, which the signature tells; recorded, since it changes the filters itself.
    with warnings.catch_warnings(record=True):
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(PORTABLE / "serve.py"),
            artifacts={"classifier": str(files)},
            code_paths=[str(PORTABLE)],
            signature=ModelSignature(
                inputs=Schema([ColSpec(DataType.string, "image")]),
                outputs=Schema([ColSpec(Array(guess), "top")]),
                params=ParamSchema([ParamSpec("top", DataType.long, 5)]),
            ),
            input_example={"image": [_base64(example)]},
            pip_requirements=[f"{name}=={version(name)}" for name in NEEDED],
            metadata={"classes": len(told["classes"]), "epoch": told["epoch"]},
        )
    shutil.rmtree(files)  # it was copied
    flush(folder)


def _base64(view: Tensor) -> str:
    file = io.BytesIO()
    functional.to_pil_image(view).save(file, "png")
    return base64.b64encode(file.getvalue()).decode("ascii")
