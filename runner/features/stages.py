"""The stages of the frozen backbone on disk: one shard store for each stage and each recipe of views.

Features that a store lacks are computed by all processes of a launch that see the same cache together.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.features
import torch
import torchvision
from accelerate.utils import gather_object

from runner.data.images import Images
from runner.data.loader import ImageLoader
from runner.data.transforms import EVALUATION_VIEW
from runner.features.cache_hosts import CacheHosts, find_cache_hosts
from runner.features.extractor import FeatureExtractor, StageInput
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore, ShardWriter
from runner.features.work_sharing import SharedWork
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.file_systems import network_file_system
from runner.utils.hashing import digest
from runner.utils.long_wait import long_wait

FEATURES_VERSION = 3
"""Part of every recipe. Increase it if decoding, transforms or normalization change their results."""
MAX_ATTEMPTS = 4
"""Times that features are computed again because their shards were damaged or removed."""
BATCHES_PER_PART = 4
"""Of each process, in a part of the work that several hosts share: some seconds, and few batches that are not full."""


@dataclass
class CacheStats:
    """What features cost and saved at this process's cache. A hit is a feature that was served without computing it.

    An image of which several variants go through the backbone counts once for each.
    """

    served: int = 0
    misses: int = 0
    compute_seconds: float = 0.0
    served_seconds: float = 0.0
    """What `compute_seconds` would be if every served feature had been computed."""

    def restore(self, values: Mapping[str, Any]) -> None:
        """Continue with the values that a snapshot has."""
        vars(self).update(vars(CacheStats(**values)))

    def metrics(self) -> dict[str, float]:
        """The metrics system/features/…, as they are logged."""
        rate = (
            {"system/features/images_per_second": self.misses / self.compute_seconds} if self.misses else {}
        )
        return {
            "system/features/hits": max(0, self.served - self.misses),
            "system/features/misses": self.misses,
            "system/features/saved_seconds": max(0.0, self.served_seconds - self.compute_seconds),
            **rate,
        }


@dataclass
class StoredStages:
    """Opens the stores of all stages, each once, and fills them.

    Args:
        root: Folder of all stores.
        extractor: Computes the features.
        loader: Loads the images that they are computed from.
        terminal: Shows progress, and reports damaged shards.
        shared: Whether several hosts use the folder; "auto" finds out.
    """

    root: Path
    extractor: FeatureExtractor
    loader: ImageLoader
    terminal: Terminal
    shared: Literal["auto"] | bool = "auto"
    _stores: dict[tuple[int, str], ShardStore] = field(default_factory=dict, init=False)
    _compute_seconds: float = field(default=0.0, init=False)
    """Of this process, without waiting for others."""

    def open(self, stage: int, view: int) -> ShardStore:
        """The store of a stage's outputs for a view."""
        view_recipe = self.loader.transform.recipe(view)
        key = (stage, digest(view_recipe))
        if key not in self._stores:
            recipe = {"view": view_recipe, **self.extractor.recipe(stage), **_library_versions()}
            self._stores[key] = ShardStore(
                self.root, recipe, self._description(stage, view), self._report_damage
            )
        return self._stores[key]

    def folders(self) -> set[Path]:
        """Folders of the stores that were opened."""
        return {store.folder for store in self._stores.values()}

    @cached_property
    def hosts(self) -> CacheHosts:
        """The processes that compute together. The first access is a collective operation."""
        recipes = [self.extractor.recipe(stage) for stage in range(len(self.extractor.stages))]
        hosts = find_cache_hosts(self.root, self._rank, digest(recipes, _library_versions()))
        if hosts.with_other_features:
            self.terminal.warn(
                f"{', '.join(hosts.with_other_features)} cannot share features with the first host: another kind of"
                " processor, or another version of a library (torch, torchvision, Pillow, libjpeg), computes other"
                " last digits, so a run's metrics depend on which host computes which image"
            )
        return hosts

    @cached_property
    def _is_shared(self) -> bool:
        """Whether other hosts may use the stores."""
        if self.shared == "auto":
            return self.hosts.count > 1 or network_file_system(self.root) is not None
        return self.shared or self.hosts.count > 1

    @long_wait()
    def ensure(self, stage: int, entries: Images, view: int, stats: CacheStats) -> None:
        """Compute what a stage's store lacks for these images.

        Every process calls this with the same stage and view; those at one cache with the same images. `stats` counts
        the images that go through stages which take images.

        Raises `UserError` if shards are damaged or removed again and again.
        """
        store, keys = self.open(stage, view), feature_keys(entries, view)
        for _ in range(MAX_ATTEMPTS):
            self._compute_missing(stage, entries, view, stats)
            # Any process may find a shard damaged or removed when it first reads it.
            is_incomplete = bool(store.verify(keys)) or len(store.missing(keys)) > 0
            if not any(gather_object([is_incomplete])):
                return
        raise UserError(
            f"Files of features in {store.folder} were damaged or removed {MAX_ATTEMPTS} times; check the disk,"
            " or set cache to another one."
        )

    def _compute_missing(self, stage: int, entries: Images, view: int, stats: CacheStats) -> None:
        """The first process at each cache finds out what is missing; all processes there share the batches.

        Several rounds, if other runs compute as well. All processes take part in each round of any cache.
        """
        store, keys = self.open(stage, view), feature_keys(entries, view)
        first, seconds = self.hosts.ranks[0], 0.0
        with self._shared_work(store, keys) if first == self._rank else nullcontext() as work:
            while True:
                taken = work.next(seconds) if work else None
                if taken is None:
                    work = None
                rounds = gather_object([taken])
                if all(indices is None for indices in rounds):
                    break
                if any(indices is not None and len(indices) for indices in rounds):
                    own = np.empty(0, np.int64) if rounds[first] is None else rounds[first]
                    before = self._compute_seconds
                    self._compute_round(stage, entries.take(own), view, stats)
                    seconds = self._compute_seconds - before
        self._await_listed(store, keys)

    def _shared_work(self, store: ShardStore, keys: FeatureKeys) -> SharedWork:
        # Rounds end at all caches of the launch together, so none of them may take everything at once.
        takes_parts = self._is_shared or self.hosts.launch_caches > 1
        part = BATCHES_PER_PART * self.extractor.batch_size * len(self.hosts.ranks) if takes_parts else None

        def report_wait(host: str) -> None:
            self.terminal.line(
                f"waiting for another run on {host}, which computes features in {store.folder}"
            )

        return SharedWork(store, keys, part, report_wait)

    def _compute_round(self, stage: int, entries: Images, view: int, stats: CacheStats) -> None:
        """Compute what was taken for this process's cache, and what that needs of other stages."""
        start = time.monotonic()
        inputs = self.extractor.stages[stage].inputs
        for input_stage in inputs:
            self.ensure(input_stage, entries, view, stats)
        self._compute(stage, entries, view)
        self.extractor.accelerator.wait_for_everyone()
        self._await_listed(self.open(stage, view), feature_keys(entries, view))
        if not inputs:
            stats.misses += len(entries)
            stats.compute_seconds += time.monotonic() - start

    def _await_listed(self, store: ShardStore, keys: FeatureKeys) -> None:
        """Refresh the store. In a shared one, wait until this process sees what was written for it."""
        if self._is_shared:
            store.share()
            store.await_listed(keys)
        else:
            store.refresh()

    @property
    def _rank(self) -> int:
        return int(self.extractor.accelerator.process_index)

    def _compute(self, stage: int, entries: Images, view: int) -> None:
        """Compute this process's share of the features: every n-th batch, for n processes at this cache."""
        start, ranks = time.monotonic(), self.hosts.ranks
        store, keys = self.open(stage, view), feature_keys(entries, view)
        size = self.extractor.batch_size
        batches = [range(start, min(start + size, len(keys))) for start in range(0, len(keys), size)]
        own = batches[ranks.index(self._rank) :: len(ranks)]
        progress = self.terminal.progress(self._title(stage), len(keys))
        with progress as advance, ShardWriter(store, 1 / len(ranks)) as writer:
            for indices, (inputs, seconds) in zip(own, self._inputs(stage, entries, view, own), strict=True):
                features = self.extractor.run_stage(inputs, stage).cpu()
                writer.add(keys.take(indices), features, seconds)
                advance(min(len(indices) * len(ranks), len(keys)))
        self._compute_seconds += time.monotonic() - start

    def _inputs(
        self, stage: int, entries: Images, view: int, batches: Sequence[range]
    ) -> Iterator[tuple[StageInput, float]]:
        """A stage's inputs, batch by batch, and the seconds that computing them took: images cost nothing."""
        inputs = self.extractor.stages[stage].inputs
        if not inputs:
            for images in self.loader.batches(entries, view, batches):
                yield images, 0.0
            return
        stores, all_keys = {index: self.open(index, view) for index in inputs}, feature_keys(entries, view)
        for indices in batches:
            keys = all_keys.take(indices)
            outputs = {index: store.read(keys) for index, store in stores.items()}
            seconds = sum(store.compute_seconds(keys) for store in stores.values())
            yield self.extractor.stage_input(stage, outputs), seconds

    def _title(self, stage: int) -> str:
        part = self.extractor.stages[stage]
        if part.inputs:
            return f"compute features of {self.extractor.layer_name(stage)}"
        variant = str(part.variant)
        return f"compute features ({variant})" if variant else "compute features"

    def _description(self, stage: int, view: int) -> dict[str, str]:
        """For `runner store list`."""
        transform, accelerator = self.loader.transform, self.extractor.accelerator
        kind = "not augmented" if view == EVALUATION_VIEW else f"augmented (seed {transform.seed})"
        compiled = ", compiled" if self.extractor.compiled else ""
        variant = str(self.extractor.stages[stage].variant)
        return {
            "layer": f"{self.extractor.model.spec.arch} {self.extractor.layer_name(stage)}",
            "view": ", ".join(filter(None, [kind, f"{transform.augment.input_size} px", variant])),
            "computed": f"precision {accelerator.mixed_precision}{compiled}, {accelerator.device.type}",
        }

    def _report_damage(self, path: Path) -> None:
        self.terminal.warn(f"{path} is damaged; computing its features again")


def feature_keys(entries: Images, view: int) -> FeatureKeys:
    """Keys of the features of images in a view. They depend on the image's content, not on its path."""
    return FeatureKeys(entries.digests, view)


def _library_versions() -> dict[str, Any]:
    """The versions of what decodes and computes."""
    return {
        "version": FEATURES_VERSION,
        "pillow": [PIL.__version__, PIL.features.version("jpg")],
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
