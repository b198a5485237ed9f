"""Computes the features that a store lacks: all processes of a host share the work."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from accelerate.utils import gather_object
from torch import Tensor

from runner.data.loader import ImageLoader
from runner.data.manifest import Entry
from runner.features.extractor import FeatureExtractor
from runner.features.shard_store import ShardStore, ShardWriter
from runner.features.stage_stores import StageStores, feature_keys
from runner.utils.console import Terminal
from runner.utils.errors import UserError

MAX_ATTEMPTS = 4
"""Times that features are computed again because their shards were damaged or removed."""


@dataclass
class CacheStats:
    """What features cost and saved, on this process's host. A hit is a feature that was served without computing it."""

    served: int = 0
    misses: int = 0
    compute_seconds: float = 0.0
    served_seconds: float = 0.0
    """What `compute_seconds` would be if every served feature had been computed."""

    def metrics(self) -> dict[str, float]:
        """The metrics features/…, as they are logged."""
        rate = {"features/images_per_second": self.misses / self.compute_seconds} if self.misses else {}
        return {
            "features/hits": max(0, self.served - self.misses),
            "features/misses": self.misses,
            "features/saved_seconds": max(0.0, self.served_seconds - self.compute_seconds),
            **rate,
        }


@dataclass(frozen=True)
class FeatureComputation:
    """Fills stores.

    Args:
        stores: The stores to fill.
        extractor: Computes the features.
        loader: Loads the images.
        stats: Counts what is computed.
        terminal: Shows progress.
    """

    stores: StageStores
    extractor: FeatureExtractor
    loader: ImageLoader
    stats: CacheStats
    terminal: Terminal

    def ensure(self, stage: int, entries: Sequence[Entry], view: int) -> None:
        """Compute what a stage's store lacks for these images. Every process calls this with the same arguments.

        Raises `UserError` if shards are damaged or removed again and again.
        """
        store, keys = self.stores.open(stage, view), feature_keys(entries, view)
        for _ in range(MAX_ATTEMPTS):
            self._compute_missing(stage, store, entries, view)
            # Any process may find a shard damaged or removed when it first reads it.
            is_incomplete = bool(store.verify(keys)) or bool(store.missing(keys))
            if not any(gather_object([is_incomplete])):
                return
        raise UserError(
            f"Files of features in {store.folder} were damaged or removed {MAX_ATTEMPTS} times; check the disk,"
            " or set cache to another one."
        )

    def _compute_missing(self, stage: int, store: ShardStore, entries: Sequence[Entry], view: int) -> None:
        """The main process of each host finds out what is missing; its processes share the batches."""
        host, is_main = socket.gethostname(), self.extractor.accelerator.is_local_main_process
        with ExitStack() as stack:
            found = self._claim_missing(store, feature_keys(entries, view), stack) if is_main else None
            gathered = gather_object([(host, found)])
            on_this_host = [indices for name, indices in gathered if name == host]
            missing = next(indices for indices in on_this_host if indices is not None)
            if any(indices for _, indices in gathered):
                start = time.monotonic()
                self._compute(stage, [entries[index] for index in missing], view, len(on_this_host))
                self.extractor.accelerator.wait_for_everyone()
                if stage == 0:
                    self.stats.misses += len(missing)
                    self.stats.compute_seconds += time.monotonic() - start
            store.refresh()

    def _claim_missing(self, store: ShardStore, keys: Sequence[str], stack: ExitStack) -> list[int]:
        """Indices of the keys that this run has to compute. If another run computes some, wait for it first."""
        store.refresh()
        missing = store.missing(keys)
        if missing:
            stack.enter_context(
                store.compute_lock(
                    lambda: self.terminal.line(
                        f"waiting for another run, which computes features in {store.folder}"
                    )
                )
            )
            store.refresh()
            missing = store.missing(keys)
        return missing

    def _compute(self, stage: int, entries: Sequence[Entry], view: int, processes: int) -> None:
        """Compute this process's share of the features: every `processes`-th batch."""
        if stage:
            self.ensure(stage - 1, entries, view)
        store, keys = self.stores.open(stage, view), feature_keys(entries, view)
        size = self.extractor.batch_size
        batches = [range(start, min(start + size, len(keys))) for start in range(0, len(keys), size)]
        own = batches[self.extractor.accelerator.local_process_index :: processes]
        title = (
            "compute features" if stage == 0 else f"compute features of {self.extractor.layer_name(stage)}"
        )
        with self.terminal.progress(title, len(keys)) as advance, ShardWriter(store, 1 / processes) as writer:
            for indices, (inputs, seconds) in zip(own, self._inputs(stage, entries, view, own), strict=True):
                features = self.extractor.run_stage(inputs, stage).cpu()
                writer.add([keys[index] for index in indices], features, seconds)
                advance(min(len(indices) * processes, len(keys)))

    def _inputs(
        self, stage: int, entries: Sequence[Entry], view: int, batches: Sequence[range]
    ) -> Iterator[tuple[Tensor, float]]:
        """A stage's inputs, batch by batch, and the seconds that computing them took: images cost nothing."""
        if stage == 0:
            for images in self.loader.batches(entries, view, batches):
                yield images, 0.0
            return
        store = self.stores.open(stage - 1, view)
        for indices in batches:
            keys = feature_keys([entries[index] for index in indices], view)
            yield store.read(keys), store.compute_seconds(keys)
