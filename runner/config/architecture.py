"""Settings whose usual values depend on the architecture: weights, normalization, and how images are prepared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from runner.config.choices import ARCHITECTURES
from runner.config.schema import ModelConfig
from runner.portable.backbones import BACKBONES


def with_architecture(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those that their `model.arch` decides, where they are not given.

    An unknown architecture decides nothing; it is refused where settings are validated.
    """
    filled = copy.deepcopy(dict(tree))
    for group, values in _usual_values(_arch(tree)).items():
        own = filled.setdefault(group, {})
        if isinstance(own, dict):
            filled[group] = {**values, **own}
    return filled


def for_architecture(tree: Mapping[str, Any], arch: str) -> dict[str, Any]:
    """Nested settings for another architecture: without those that belong to the present one.

    Random weights remain random, and sizes of images that are not the usual ones remain as they are.
    """
    present, changed = _arch(tree), copy.deepcopy(dict(tree))
    if arch == present:
        return changed
    for group, values in _usual_values(present).items():
        own = changed.get(group)
        if not isinstance(own, dict):
            continue
        for name, value in values.items():
            if own.get(name) == value or _names_weights(f"{group}.{name}", own.get(name)):
                own.pop(name, None)
    changed.setdefault("model", {})["arch"] = arch
    return changed


def _names_weights(setting: str, value: Any) -> bool:
    return (setting == "model.weights" and value is not None) or (
        setting == "model.normalize" and isinstance(value, str) and "." in value
    )


def _arch(tree: Mapping[str, Any]) -> str:
    model = tree.get("model")
    return str(model.get("arch", ModelConfig.arch)) if isinstance(model, Mapping) else ModelConfig.arch


def _usual_values(arch: str) -> dict[str, dict[str, Any]]:
    """The usual values of settings for an architecture, by group."""
    try:
        backbone = ARCHITECTURES.find(arch).implementation
    except ValueError:
        return {}
    prepared = backbone.preprocessing(None)
    numbers = {"mean": list(prepared.mean), "std": list(prepared.std)}
    return {
        "model": {
            "weights": backbone.default_weights(),
            # The statistics of the training images are the published report's choice for VGG.
            "normalize": ModelConfig.normalize if arch in BACKBONES else numbers,
        },
        "augment": {
            "crop": prepared.crop,
            "resize": prepared.resize,
            "crop_mode": prepared.crop_mode,
            "interpolation": prepared.interpolation,
        },
    }
