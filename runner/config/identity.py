"""The identity of an experiment: what two runs must have in common to be comparable, or one and the same.

It has three parts: the settings that can change results, the images with their split, and the pretrained weights. The
last two are compared by content. Studies, resumed runs, branches, reproductions, comparisons of runs and the choice of
a champion all use it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from runner.config.metadata import changes_results, table
from runner.config.schema import Experiment
from runner.config.tree import as_tree, flatten
from runner.config.validation import is_file
from runner.utils.text import one_line

MANIFEST_TAG = "runner.manifest"
"""Tag of a run or a model version: `Identity.manifest`."""
WEIGHTS_TAG = "runner.weights"
"""Tag of a run: `Identity.weights`."""
WEIGHTS = "model.weights"
NOT_SET = "not set"
"""Stands for a value that one of two tables lacks and that is no setting."""


@dataclass(frozen=True)
class Identity:
    """What determines the results of an experiment."""

    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings that can change results, by dotted name. `model.weights` is the name of a file, without folder."""
    manifest: str = ""
    """`Manifest.digest`: of the images and their split; empty if it is not known."""
    weights: str = ""
    """`weights_digest` of the pretrained weights; empty if there is no file, or its digest is not known."""

    @classmethod
    def of(cls, tree: Mapping[str, Any], manifest: str = "", weights: str = "") -> Identity:
        """Of an experiment as nested settings (`as_tree`), or of a run's parameters by dotted name."""
        settings = {name: value for name, value in flatten(tree).items() if changes_results(name)}
        file = settings.get(WEIGHTS)
        if isinstance(file, str) and is_file(file):
            settings[WEIGHTS] = Path(file).name
        return cls(settings, manifest, weights)

    @classmethod
    def on_images(cls, experiment: Experiment, manifest: str) -> Identity:
        """Of an experiment with the images of a manifest's digest and with its weights file as it is now."""
        return cls.of(as_tree(experiment), manifest, weights_digest(experiment.model.weights))

    @classmethod
    def of_run(cls, params: Mapping[str, Any], tags: Mapping[str, str]) -> Identity:
        """Of a run in MLflow, from its parameters and tags."""
        decisive = {name: value for name, value in params.items() if name != "name"}
        return cls.of(decisive, tags.get(MANIFEST_TAG, ""), tags.get(WEIGHTS_TAG, ""))

    def tags(self) -> dict[str, str]:
        """The tags by which a run in MLflow shows what images and weights it has."""
        known = {MANIFEST_TAG: self.manifest, WEIGHTS_TAG: self.weights}
        return {name: value for name, value in known.items() if value}

    def has_same_images(self, other: Identity) -> bool:
        """Whether both are known to have the same images in the same split: only then are their scores comparable."""
        return bool(self.manifest) and self.manifest == other.manifest

    def has_other_images(self, other: Identity) -> bool:
        """Whether both are known to have other images, or another split of them."""
        return _differ(self.manifest, other.manifest)

    def has_other_weights(self, other: Identity) -> bool:
        """Whether both are known to start from other pretrained weights."""
        return _differ(self.weights, other.weights)

    def changes(self, now: Identity) -> list[str]:
        """How the experiment `now` differs from this one, a clause each; empty if it is the same experiment.

        Digests that one of the two lacks are not compared.
        """
        then_settings, now_settings = dict(self.settings), dict(now.settings)
        if self.weights and now.weights:  # then the name of the file does not matter
            for settings in (then_settings, now_settings):
                settings.pop(WEIGHTS, None)
        clauses = describe_changes(then_settings, now_settings)
        if self.has_other_images(now):
            clauses.append("the images or their split have changed")
        if self.has_other_weights(now):
            clauses.append("the pretrained weights have changed")
        return clauses


def describe_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How two tables of values differ, a clause for each name: `train.epochs was 5 and is 6 now`."""
    one, other = flatten(then), flatten(now)
    return [
        f"{one_line(name, 60)} was {_shown(one, name)} and is {_shown(other, name)} now"
        for name in {**one, **other}
        if str(_value(one, name)) != str(_value(other, name))  # parameters of runs are texts
    ]


def weights_digest(weights: str | None) -> str:
    """SHA-256 of the file that `model.weights` names; empty if it names no file, or one that does not exist."""
    if weights is None or not is_file(weights):
        return ""
    path = Path(weights).expanduser()
    if not path.is_file():
        return ""
    stat = path.stat()
    return _file_digest(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_digest(path: Path, _size: int, _modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _differ(one: str, other: str) -> bool:
    return bool(one) and bool(other) and one != other


def _value(values: Mapping[str, Any], name: str) -> Any:
    """A value; for a setting that is younger than the experiment, its default."""
    if name in values or name not in table():
        return values.get(name, NOT_SET)
    default = table()[name].default
    return list(default) if isinstance(default, tuple) else default  # as in nested settings


def _shown(values: Mapping[str, Any], name: str) -> str:
    return one_line(str(_value(values, name)), 80)
