"""A store of features on disk, keyed by (image content, view).

A store is a folder of shards. A shard is a .safetensors file of features with their keys and a checksum; it is written
atomically and read through a memory map. Any number of processes add and read shards, on one host or on several. It
does no harm if two compute the same feature; `work_sharing` lets one do it.
"""

from __future__ import annotations

import json
import math
import os
import time
import uuid
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runner.features.key_index import KeyIndex
from runner.features.keys import FeatureKeys
from runner.features.store_lock import UseLock
from runner.utils.atomic_files import atomic_write
from runner.utils.hashing import digest
from runner.utils.network_files import is_gone, server_time
from runner.utils.tensors import save_tensors

TENSOR = "features"
"""Name of the tensor in a shard."""
MAX_OPEN_MAPS = 8192
"""Memory-mapped shards per store; Linux allows a process 65,530 maps."""
SHARD_BYTES = 16 * 2**20
"""A shard is written when it has this many bytes of features,"""
SHARD_SECONDS = 5.0
"""or this long after the previous one: a killed process loses no more."""
LISTING_SECONDS = 30.0
"""How long a network file system may list a folder as it was before: NFS does by default."""


class ShardStore:
    """The features that one recipe computes.

    Args:
        root: Folder of all stores.
        recipe: Everything that decides the values of a feature, besides the image and the number of the view.
        description: What the features are, for people.
        on_damage: Called with each damaged shard that is dropped.
    """

    def __init__(
        self,
        root: Path,
        recipe: dict[str, Any],
        description: dict[str, Any] | None = None,
        on_damage: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self.folder = root / digest(recipe)
        self.on_damage = on_damage
        contents = {"description": description or {}, "recipe": recipe}
        self._use_lock = UseLock(self.folder, json.dumps(contents, indent=1, default=str))
        self._names: list[str] = []
        """File names of the shards, also of those that are gone: a shard's number is its place here."""
        self._numbers: dict[str, int] = {}
        """Numbers of the shards that are there."""
        self._costs: list[float] = []
        """Seconds per feature, for each shard."""
        self._indices: defaultdict[int, KeyIndex] = defaultdict(KeyIndex)
        """Where the features of each view are."""
        self._found: tuple[np.ndarray, int, np.ndarray] | None = None
        """The digests and the view that were last looked up, and their places."""
        self._verified: set[str] = set()
        self._dropped: set[str] = set()
        """Damaged shards. They still exist if they could not be deleted."""
        self._maps: OrderedDict[str, Tensor] = OrderedDict()
        self._feature_type: tuple[torch.Size, torch.dtype] | None = None
        """Shape and dtype of a feature in the first verified shard."""

    def refresh(self, uncached: bool = False) -> None:
        """Read the index of shards that any process added, forget removed ones, drop unreadable ones.

        Args:
            uncached: Also find those that other hosts added a moment ago: a network file system may remember an earlier
                list of the folder's files.
        """
        self._use_lock.acquire()
        if uncached:
            with suppress(OSError):
                server_time(self.folder)
        present = self._listed()
        self._forget(self._numbers.keys() - present)
        for name in sorted(present - self._numbers.keys() - self._dropped):
            try:
                with safe_open(self.folder / name, "pt") as file:
                    metadata = file.metadata()
                keys, seconds = FeatureKeys.from_json(metadata["keys"]), float(metadata["seconds"])
                if not 0 <= seconds < math.inf:
                    raise ValueError(seconds)
            except OSError as error:
                if not is_gone(error):
                    raise
                continue
            except (SafetensorError, KeyError, ValueError, TypeError):
                self._drop(name)
                continue
            self._found = None
            self._numbers[name] = len(self._names)
            self._indices[keys.view].add(len(self._names), keys.digests)
            self._names.append(name)
            self._costs.append(seconds / len(keys))

    def _listed(self) -> set[str]:
        """The names of the shards in the folder."""
        try:
            names = os.listdir(self.folder)
        except OSError as error:
            if not is_gone(error):
                raise
            return set()
        return {name for name in names if name.endswith(".safetensors")}

    def await_listed(self, keys: FeatureKeys) -> None:
        """Refresh until the folder lists the features of `keys`, which were written, perhaps by another host.

        Gives up after `LISTING_SECONDS`, as when they were removed meanwhile.
        """
        deadline = time.monotonic() + LISTING_SECONDS
        self.refresh()
        while len(self.missing(keys)) and time.monotonic() < deadline:
            time.sleep(0.05)
            with suppress(OSError):  # a host may remember for a minute that there was no such folder
                self.create()
            self.refresh(uncached=True)

    def missing(self, keys: FeatureKeys) -> np.ndarray:
        """Indices of the keys that are not stored."""
        return np.flatnonzero(self._places(keys) < 0)

    def compute_seconds(self, keys: FeatureKeys) -> float:
        """Seconds that computing the features took, for those that are stored."""
        return float(np.array(self._costs) @ self._counts(keys))

    def verify(self, keys: FeatureKeys) -> list[str]:
        """Check the shards that hold `keys`, each once per process. Returns the damaged ones, which are dropped."""
        names = {self._names[shard] for shard in np.flatnonzero(self._counts(keys))} - self._verified
        damaged = sorted(
            name for name in names if not (is_intact(self.folder / name) and self._has_same_type(name))
        )
        self._verified |= names - set(damaged)
        for name in damaged:
            self._drop(name)
        return damaged

    def read(self, keys: FeatureKeys) -> Tensor:
        """The features of `keys` (at least one), in order: len(keys) × feature. Raises KeyError if one is missing."""
        try:
            return self._read(keys)
        except OSError as error:
            if not is_gone(error):
                raise
            # Another process found a file damaged and replaced it: its features may be in another one.
            self.refresh(uncached=True)
            return self._read(keys)

    def _read(self, keys: FeatureKeys) -> Tensor:
        places = self._places(keys)
        if places.min() < 0:
            raise KeyError(keys.take([int(places.argmin())]).to_json())
        order = np.argsort(places)
        shards = places[order] >> 32
        features: np.ndarray | None = None
        for targets in np.split(order, np.flatnonzero(np.diff(shards)) + 1):
            name = self._names[places[targets[0]] >> 32]
            shard = self._map(name)
            rows = shard.reshape(len(shard), -1).view(torch.uint8).numpy()
            if features is None:
                features = np.empty((len(keys), rows.shape[1]), np.uint8)
                shape, dtype = shard.shape[1:], shard.dtype
            features[targets] = rows[places[targets] & 0xFFFFFFFF]
            if 2 * len(targets) > len(
                shard
            ):  # read at once: what stays mapped would count as this process's memory
                del self._maps[name]
        assert features is not None, "no keys were given"  # noqa: S101 (a precondition of the method)
        return torch.from_numpy(features).view(dtype).reshape(len(keys), *shape)

    def write(self, keys: FeatureKeys, features: Tensor, seconds: float = 0.0) -> None:
        """Add a shard of features (len(keys) × feature), which took `seconds` to compute."""
        self.create()
        features = features.contiguous()
        text = keys.to_json()
        metadata = {
            "keys": text,
            "seconds": f"{seconds:.9e}",  # always as long: equal runs have stores of equal size
            "checksum": checksum(text, features),
        }
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with atomic_write(path) as temporary:
            save_tensors({TENSOR: features}, temporary, metadata, path)

    def create(self) -> None:
        """Make the store if there is none, and keep it from being removed."""
        self._use_lock.acquire(create=True)

    def share(self) -> None:
        """Call this if several hosts use the store, whatever its file system is called: it is kept from all of them."""
        self._use_lock.share()

    def release(self) -> None:
        """Allow others to remove the store."""
        self._use_lock.release()

    def _places(self, keys: FeatureKeys) -> np.ndarray:
        """The shard and row of each key, as `KeyIndex.find` gives them. The last result is kept."""
        if self._found is None or self._found[0] is not keys.digests or self._found[1] != keys.view:
            self._found = keys.digests, keys.view, self._indices[keys.view].find(keys.digests)
        return self._found[2]

    def _counts(self, keys: FeatureKeys) -> np.ndarray:
        """How many of the keys each shard holds."""
        places = self._places(keys)
        return np.bincount(places[places >= 0] >> 32, minlength=len(self._names))

    def _map(self, name: str) -> Tensor:
        """The features of a shard, memory-mapped: only what is accessed is read."""
        if name not in self._maps:
            with safe_open(self.folder / name, "pt") as file:
                self._maps[name] = file.get_tensor(TENSOR)
            if len(self._maps) > MAX_OPEN_MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(name)
        return self._maps[name]

    def _has_same_type(self, name: str) -> bool:
        """Whether a shard's features have the others' shape and dtype; otherwise they cannot be read together."""
        shard = self._map(name)
        self._feature_type = self._feature_type or (shard.shape[1:], shard.dtype)
        return (shard.shape[1:], shard.dtype) == self._feature_type

    def _drop(self, name: str) -> None:
        self.on_damage(self.folder / name)
        self._dropped.add(name)
        with suppress(OSError):  # a read-only store: it is enough to forget the shard
            (self.folder / name).unlink(missing_ok=True)
        self._forget({name})

    def _forget(self, names: set[str]) -> None:
        numbers = {self._numbers.pop(name) for name in names if name in self._numbers}
        for name in names:
            self._maps.pop(name, None)
        if numbers:
            self._found = None
            for index in self._indices.values():
                index.remove(numbers)


class ShardWriter:
    """Collects features and writes them in shards of reasonable size, in a thread beside the computation.

    A context manager. What is collected is also written when the block ends with an exception.

    Args:
        store: Where to write.
        share: Fraction of the elapsed time that these features cost: 1 / number of processes that compute together.
    """

    def __init__(self, store: ShardStore, share: float = 1.0) -> None:
        self.store = store
        self.share = share
        self._keys: list[FeatureKeys] = []
        self._features: list[Tensor] = []
        self._input_seconds = 0.0
        self._start = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="shards")
        self._pending: Future[None] | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, OSError):  # after a disk error there is no use in trying again
                self._flush()
                self._wait()
        except OSError:
            if error is None:
                raise
        finally:
            self._pool.shutdown()

    def add(self, keys: FeatureKeys, features: Tensor, input_seconds: float = 0.0) -> None:
        """Add features, whose inputs took `input_seconds` to compute; all have one view.

        Raises OSError if an earlier shard failed.
        """
        self._keys.append(keys)
        self._features.append(features)
        self._input_seconds += input_seconds
        is_full = sum(part.nbytes for part in self._features) >= SHARD_BYTES
        if is_full or time.monotonic() - self._start >= SHARD_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if not self._keys:
            return
        self._wait()
        now = time.monotonic()
        seconds = (now - self._start) * self.share + self._input_seconds
        keys = FeatureKeys(np.concatenate([part.digests for part in self._keys]), self._keys[0].view)
        self._pending = self._pool.submit(self.store.write, keys, torch.cat(self._features), seconds)
        self._keys, self._features, self._input_seconds, self._start = [], [], 0.0, now

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


def is_intact(path: Path) -> bool:
    """Whether a file is a complete shard with the checksum that it was written with."""
    try:
        with safe_open(path, "pt") as file:
            metadata, features = file.metadata(), file.get_tensor(TENSOR)
        keys = FeatureKeys.from_json(metadata["keys"])
        return len(features) == len(keys) and metadata["checksum"] == checksum(metadata["keys"], features)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        return False


def checksum(keys: str, features: Tensor) -> str:
    """CRC-32 of keys (as JSON), shape, dtype and values. It detects disk errors, not deliberate changes."""
    listed = keys.replace('"', "'")  # as Python prints a list: so the checksum was first defined
    header = zlib.crc32(f"{listed} {tuple(features.shape)} {features.dtype}".encode())
    return f"{zlib.crc32(features.flatten().view(torch.uint8).numpy().data, header):08x}"
