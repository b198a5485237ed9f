"""Settings whose usual values depend on the network: weights, normalization, and how images are prepared."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from runner.config.choices import ARCHITECTURES
from runner.config.schema import ModelConfig
from runner.config.validation import is_file
from runner.portable.backbones import BACKBONES

SIZES = ("crop", "resize")
"""Settings of `augment` that fit each other."""
Tree = Mapping[str, Any]
"""Nested settings."""


def with_usual_values(tree: Tree) -> dict[str, Any]:
    """Settings with those that their `model.arch` and `model.weights` decide, where they are not given.

    `augment.resize` follows a given `augment.crop`, so that the same share of each image is seen. An unknown
    architecture decides nothing; it is refused where settings are validated.
    """
    filled = copy.deepcopy(dict(tree))
    for group, values in _usual_values(tree).items():
        own = filled.setdefault(group, {})
        if not isinstance(own, dict):
            continue
        if group == "augment" and isinstance(crop := own.get("crop"), int):
            values["resize"] = round(crop * values["resize"] / values["crop"])
        filled[group] = {**values, **own}
    return filled


def for_network(tree: Tree, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings for another network: without those that the present architecture and weights decide.

    Weights of the present architecture go with it; those in a file, random ones and those that the new one has, too,
    such as package, remain. So do values that are not the usual ones.

    Args:
        tree: Is not changed.
        changes: New values by dotted name. Of these, `model.arch` and `model.weights` are set.
    """
    changed = copy.deepcopy(dict(tree))
    model = _group(changed, "model")
    new = {name: changes[f"model.{name}"] for name in ("arch", "weights") if f"model.{name}" in changes}
    if all(model.get(name, _MISSING) == value for name, value in new.items()):
        return changed
    usual_values = _usual_values(tree)
    for group, values in usual_values.items():
        own = _group(changed, group)
        usual = {name for name, value in values.items() if own.get(name, value) == value}
        if not usual.issuperset(SIZES):
            usual -= {*SIZES}
        for name in usual - {"weights"}:
            own.pop(name, None)
    if new.get("arch", _arch(tree)) != _arch(tree):
        weights, usual_weights = model.get("weights"), usual_values.get("model", {}).get("weights")
        fits = is_file(str(weights)) or _has_weights(str(new["arch"]), str(weights))
        if weights is not None and (weights == usual_weights or not fits):
            del model["weights"]
        if isinstance(normalize := model.get("normalize"), str) and "." in normalize:
            del model["normalize"]  # an enum of the present architecture
    changed["model"] = {**model, **new}
    return changed


def _has_weights(arch: str, weights: str) -> bool:
    try:
        return weights in ARCHITECTURES.find(arch).implementation.weights_names()
    except ValueError:  # an unknown architecture
        return False


_MISSING = object()


def _group(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """A group of settings; an empty one if there is none."""
    group = tree.get(name)
    return group if isinstance(group, dict) else {}


def _arch(tree: Tree) -> str:
    model = tree.get("model")
    return str(model.get("arch", ModelConfig.arch)) if isinstance(model, Mapping) else ModelConfig.arch


def _usual_values(tree: Tree) -> dict[str, dict[str, Any]]:
    """The usual values of settings for the architecture and the weights of a tree, by group."""
    arch, model = _arch(tree), tree.get("model")
    try:
        backbone = ARCHITECTURES.find(arch).implementation
        usual = backbone.default_weights()
        weights = model.get("weights", usual) if isinstance(model, Mapping) else usual
        prepared = backbone.preprocessing(weights if isinstance(weights, str) else None)
    except ValueError:
        return {}
    numbers = {"mean": list(prepared.mean), "std": list(prepared.std)}
    return {
        "model": {
            "weights": usual,
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
