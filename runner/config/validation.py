"""What can be found wrong before anything is spawned: no torch, no MLflow, a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from runner.config.schema import ModelConfig
from runner.utils.errors import UserError


def is_file(name: str) -> bool:
    """Whether `model.weights` names a file rather than a torchvision enum."""
    return name.endswith((".safetensors", ".pth", ".pt")) or "/" in name


def check_weights(settings: ModelConfig) -> None:
    """What can be refused of weights without reading or downloading them. Raises `UserError`."""
    name = settings.weights
    if name is None:
        return
    enums = f"{settings.arch.upper()}_Weights"
    if is_file(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"There is no weights file {path}; set model.weights to one,"
                f" to {enums}.IMAGENET1K_V1 (torchvision downloads it), or to null for random weights."
            )
        if path.suffix not in (".safetensors", ".pth", ".pt"):
            raise UserError(f"{path} is neither .safetensors nor .pth; model.weights takes those.")
    elif name.partition(".")[0].lower() != enums.lower():
        raise UserError(
            f"model.weights={name} is no file and no weights of {settings.arch};"
            f" its torchvision enums are named {enums}.…, as {enums}.IMAGENET1K_V1."
        )
    elif name.endswith("IMAGENET1K_FEATURES") and settings.head == "classifier":
        raise UserError(
            f"The classifier of {name} is NaN, which model.head=classifier would use;"
            f" set model.head=pooled, or model.weights={enums}.IMAGENET1K_V1."
        )
