"""Feature caches of experiments, and damage to their stores."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from helpers import QUIET
from safetensors import safe_open
from torch import Tensor

from runner.config.schema import Experiment
from runner.data.transforms import EVALUATION_VIEW
from runner.features.cache import FeatureCache
from runner.features.eviction import feature_root, list_stores
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore
from runner.training import setup
from runner.utils.console import Terminal
from runner.utils.hashing import raw_digest


def keys_of(names: Iterable[str], view: int = EVALUATION_VIEW) -> FeatureKeys:
    """Keys of images with these contents."""
    content = b"".join(raw_digest(name.encode()) for name in names)
    return FeatureKeys(np.frombuffer(content, np.uint8).reshape(-1, 20), view)


def features_of(experiment: Experiment, accelerator: Accelerator, terminal: Terminal = QUIET) -> FeatureCache:
    return setup.prepare(experiment, accelerator, terminal).features


def missing_images(experiment: Experiment, accelerator: Accelerator) -> tuple[int, int]:
    """Images to compute for the first augmented view of training, and for validation."""
    features = features_of(experiment, accelerator)
    train, val = [("train", 0)], [("val", EVALUATION_VIEW)]
    return features.missing(train).images, features.missing(val).images


def read(features: FeatureCache, split: str, view: int, indices: Iterable[int]) -> Tensor:
    """The features of some images of a split."""
    return next(iter(features.get(split, view).batches([list(indices)])))


def flip_a_bit(path: Path) -> None:
    """In the last byte: a value of a feature."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def damage_all(root: Path) -> list[Path]:
    """Flip a bit in every shard of every store; returns the shards."""
    paths = list(root.rglob("*.safetensors"))
    assert paths
    for path in paths:
        flip_a_bit(path)
    return paths


def cached_keys(cache: Path) -> list[str]:
    """The keys of all cached features, by store. Features that were computed twice are there twice."""
    keys = []
    for path in (cache / "features").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            keys += [f"{path.parent.name} {key}" for key in json.loads(file.metadata()["keys"])]
    return keys


def shards(store: ShardStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def old_stores(cache: Path) -> list[ShardStore]:
    """Stores of 4 kB each, last used a day, an hour and a minute ago."""
    stores = []
    for name, seconds in (("old", 86400), ("middle", 3600), ("new", 60)):
        store = ShardStore(cache / "features", {"name": name}, {"layer": name, "view": "not augmented"})
        store.write(keys_of("a"), torch.ones(1, 1000))
        store.release()
        os.utime(store.folder / "recipe.json", (time.time() - seconds,) * 2)
        stores.append(store)
    return stores


def store_names(cache: Path) -> list[str]:
    """What the stores of a cache are called in their descriptions, the most recently used first."""
    return [store.description["layer"] for store in list_stores(feature_root(cache))]
