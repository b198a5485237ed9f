"""The shard stores of an experiment: one for each stage of the frozen backbone and each recipe of views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import PIL.features
import torch
import torchvision

from runner.data.loader import ImageLoader
from runner.data.manifest import Entry
from runner.data.transforms import EVALUATION_VIEW
from runner.features.extractor import FeatureExtractor
from runner.features.shard_store import ShardStore
from runner.utils.console import Terminal
from runner.utils.hashing import digest

FEATURES_VERSION = 3
"""Part of every recipe. Increase it if decoding, transforms or normalization change their results."""


@dataclass
class StageStores:
    """Opens stores under a root, each once.

    Args:
        root: Folder of all stores.
        extractor: Computes the features.
        loader: Loads the images that they are computed from.
        terminal: Reports damaged shards.
    """

    root: Path
    extractor: FeatureExtractor
    loader: ImageLoader
    terminal: Terminal
    _opened: dict[tuple[int, str], ShardStore] = field(default_factory=dict, init=False)

    def open(self, stage: int, view: int) -> ShardStore:
        """The store of a stage's outputs for a view."""
        view_recipe = self.loader.transform.recipe(view)
        key = (stage, digest(view_recipe))
        if key not in self._opened:
            recipe = {"view": view_recipe, **self.extractor.recipe(stage), **_library_versions()}
            self._opened[key] = ShardStore(
                self.root, recipe, self._description(stage, view), self._report_damage
            )
        return self._opened[key]

    def folders(self) -> set[Path]:
        """Folders of the stores that were opened."""
        return {store.folder for store in self._opened.values()}

    def _description(self, stage: int, view: int) -> dict[str, str]:
        """For `runner store list`."""
        transform, accelerator = self.loader.transform, self.extractor.accelerator
        kind = "not augmented" if view == EVALUATION_VIEW else f"augmented (seed {transform.seed})"
        compiled = ", compiled" if self.extractor.compiled else ""
        return {
            "layer": f"{self.extractor.model.spec.arch} {self.extractor.layer_name(stage)}",
            "view": f"{kind}, {transform.augment.crop} px",
            "computed": f"precision {accelerator.mixed_precision}{compiled}, {accelerator.device.type}",
        }

    def _report_damage(self, path: Path) -> None:
        self.terminal.warn(f"{path} is damaged; computing its features again")


def feature_keys(entries: Sequence[Entry], view: int) -> list[str]:
    """Keys of the features of images in a view. They depend on the image's content, not on its path."""
    return [f"{entry.digest}:{view}" for entry in entries]


def _library_versions() -> dict[str, Any]:
    """The versions of what decodes and computes."""
    return {
        "version": FEATURES_VERSION,
        "pillow": [PIL.__version__, PIL.features.version("jpg")],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
