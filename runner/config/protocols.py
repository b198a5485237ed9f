"""Protocols: published ways to split the images, by name. Each stands for the values of some settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.utils.safe_yaml import dump_yaml

PROTOCOLS: dict[str, dict[str, dict[str, Any]]] = {
    "50-25-25": {"split": {"by": "fraction", "train": 0.5, "val": 0.25, "test": 0.25}},
    "caltech101-30": {
        "split": {"by": "count", "train": 30, "val": "rest", "test": 50},
        "train": {"refit": False},  # a refit would train on more than 30 images of a class
    },
}
"""Settings that each protocol decides, by group."""


def with_protocol(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those that their `split.protocol` decides, where they are not given."""
    return _merged(_decided(tree), tree)


def without_decided(tree: Mapping[str, Any], protocol: str) -> dict[str, Any]:
    """Nested settings without those that a protocol decides."""
    decided = PROTOCOLS.get(protocol, {})
    return {
        group: {name: value for name, value in values.items() if name not in decided[group]}
        if group in decided
        else values
        for group, values in tree.items()
    }


def check_protocol(protocol: str | None, group: str, settings: object) -> None:
    """Raises `ValueError` if a group of settings contradicts a protocol."""
    decided = PROTOCOLS[protocol].get(group, {}) if protocol else {}
    for name, value in decided.items():
        if (given := getattr(settings, name)) != value:
            raise ValueError(
                f"{group}.{name} is {_shown(given)}, but split.protocol={protocol} sets it to {_shown(value)}; leave"
                " out one of the two"
            )


def _decided(tree: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    split = tree.get("split")
    protocol = split.get("protocol") if isinstance(split, Mapping) else None
    return PROTOCOLS.get(protocol, {}) if isinstance(protocol, str) else {}


def _merged(decided: Mapping[str, Mapping[str, Any]], tree: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for group, values in decided.items():
        own = tree.get(group, {})
        merged[group] = {**values, **own} if isinstance(own, Mapping) else own
    return merged


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else dump_yaml(value, flow=True)
