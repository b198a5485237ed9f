"""What can be found wrong before anything is spawned: no torch, no MLflow, a fraction of a second."""

from __future__ import annotations

from pathlib import Path

from runner.errors import UserError
from runner.experiment import Experiment, NetworkSettings
from runner.manifest import build
from runner.terminal import Terminal


def check(experiment: Experiment, terminal: Terminal) -> None:
    """Refuse what cannot work: weights and data. Scans new images, and remembers the scan.

    Raises `UserError`.
    """
    check_weights(experiment.network)
    build(experiment, terminal)


def is_file(name: str) -> bool:
    """Whether `network.weights` names a file rather than a torchvision enum."""
    return name.endswith((".safetensors", ".pth", ".pt")) or "/" in name


def check_weights(settings: NetworkSettings) -> None:
    """What can be refused of weights without reading or downloading them. Raises `UserError`."""
    name = settings.weights
    if name is None:
        return
    enums = f"{settings.arch.upper()}_Weights"
    if is_file(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise UserError(
                f"There is no weights file {path}; set network.weights to one,"
                f" to {enums}.IMAGENET1K_V1 (torchvision downloads it), or to null for random weights."
            )
        if path.suffix not in (".safetensors", ".pth", ".pt"):
            raise UserError(f"{path} is neither .safetensors nor .pth; network.weights takes those.")
    elif name.partition(".")[0].lower() != enums.lower():
        raise UserError(
            f"network.weights={name} is no file and no weights of {settings.arch};"
            f" its torchvision enums are named {enums}.…, as {enums}.IMAGENET1K_V1."
        )
    elif name.endswith("IMAGENET1K_FEATURES") and settings.head == "report":
        raise UserError(
            f"The classifier of {name} is NaN, which network.head=report would use;"
            f" set network.head=pooled, or network.weights={enums}.IMAGENET1K_V1."
        )
