"""Checks of settings that load no weights and no MLflow, so that mistakes are reported before any process starts."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError, safe_open

from runner.config.choices import ARCHITECTURES
from runner.config.schema import ModelConfig
from runner.portable.backbone import Backbone
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean, named

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
NORMALIZATION_KEYS = ("normalization", "normalisation")
"""Metadata keys of a .safetensors file for the normalization that its weights expect, {"mean": […], "std": […]} as
JSON. The second is the spelling in files that were written for earlier versions."""


def is_file(name: str) -> bool:
    """Whether `model.weights` names a file, not weights of a library."""
    return name.endswith(WEIGHTS_SUFFIXES) or "/" in name


def check_weights(settings: ModelConfig) -> None:
    """Check `model.weights` as far as possible without reading or downloading them. Raises `UserError`."""
    if settings.weights is None:
        return
    backbone = ARCHITECTURES.find(settings.arch).implementation
    if is_file(settings.weights):
        path = Path(settings.weights).expanduser()
        _check_file(path, backbone)
        if settings.normalize == "weights" and not _states_normalization(path):
            named_by = (
                f"if they are torchvision's, name them (--model.normalize {_candidates(path, backbone)}); else "
                if backbone.weights_enum
                else ""
            )
            usual = backbone.preprocessing(None)
            raise UserError(
                f"{path} does not say which normalization its weights expect; {named_by}give the numbers (usual for"
                f" {backbone.arch}: --model.normalize '{{mean: {[*usual.mean]}, std: {[*usual.std]}}}'), or statistics"
                " for those of the training images."
            )
        return
    try:
        backbone.preprocessing(settings.weights)
    except ValueError as error:
        raise UserError(f"model.weights={settings.weights}: {error}.") from None
    if not backbone.weights_enum:
        if settings.weights not in (tags := backbone.weights_names()):
            raise UserError(
                f"model.weights={settings.weights} is no file and no weights of {settings.arch}"
                f"{did_you_mean(settings.weights, tags)}; there are {named(tags) or 'none'}, and null for random ones."
            )
        return
    enum, _, member = settings.weights.partition(".")
    if enum.lower() != backbone.weights_enum.lower():
        raise UserError(
            f"model.weights={settings.weights} is no file and no weights of {settings.arch}; use a file, a member of"
            f" torchvision's enum {backbone.weights_enum}, such as {backbone.default_weights()}, or null for random"
            " ones."
        )
    if member in backbone.weights_without_classifier and settings.head == "classifier":
        raise UserError(
            f"{settings.weights} has no usable classifier, which model.head=classifier needs;"
            f" set model.head=pooled, or model.weights={backbone.default_weights()}."
        )


def _candidates(path: Path, backbone: Backbone) -> str:
    """The members of the enum whose normalization a file may expect, and how to tell them apart."""
    plain, *others = (
        str(backbone.default_weights()),
        *(f"{backbone.weights_enum}.{member}" for member in backbone.weights_without_classifier),
    )
    if not others:
        return plain
    if _lacks_classifier(path):
        return f"{' or '.join(others)}, most likely, as the file has no classifier; or {plain}"
    return f"{plain}, or {' or '.join(others)} if they came without a classifier"


def _lacks_classifier(path: Path) -> bool:
    """Whether a .safetensors file has no weights of linear layers; False for files that need torch to be read."""
    if path.suffix != ".safetensors":
        return False
    with safe_open(path, "np") as file:
        return all(len(file.get_slice(name).get_shape()) != 2 for name in file.keys())  # noqa: SIM118 (no mapping)


def _states_normalization(path: Path) -> bool:
    """Whether a weights file says which normalization it expects. True for a damaged file, which is refused as such."""
    if path.suffix != ".safetensors":
        return False
    try:
        with safe_open(path, "np") as file:
            return not (file.metadata() or {}).keys().isdisjoint(NORMALIZATION_KEYS)
    except (SafetensorError, OSError):
        return True


def _check_file(path: Path, backbone: Backbone) -> None:
    if not path.is_file():
        if (tag := path.name.rpartition(".")[2]) in backbone.weights_names():
            raise UserError(f"model.weights takes the tag of weights alone: --model.weights {tag}")
        raise UserError(
            f"There is no weights file {path}; set model.weights to a file,"
            f" to {backbone.default_weights()} (it is downloaded), or to null for random weights."
        )
    if path.suffix not in WEIGHTS_SUFFIXES:
        raise UserError(f"{path} is neither .safetensors nor .pth; model.weights takes those.")
