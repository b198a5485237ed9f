"""A store of feature rows on disk, keyed by what computed them and by (image content, view).

A store is a folder; a file in it is a .safetensors of rows with their keys and a checksum, written whole or not at
all, and read through a memory map. Any number of processes add files and read them; a row that two of them computed
is the same row. While a process uses a store it holds a shared lock on it, so that nobody removes it; while it
computes rows it holds an exclusive one, so that others wait and share instead of computing the same.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import socket
import time
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from torch import Tensor

from runner.features.eviction import RECIPE_FILE, USE_LOCK
from runner.utils.atomic_files import atomic_write, write_text
from runner.utils.hashing import digest
from runner.utils.tensors import save_tensors

NEW = os.O_RDWR | os.O_CREAT
MAX_OPEN_MAPS = 8192
"""Files that are mapped at once: Linux allows a process 65,530 maps."""
SHARD_BYTES = 16 * 2**20
"""A file is written when it has so many bytes of rows …"""
SHARD_SECONDS = 5.0
"""… or so long after the last one: what a killed process loses."""


class ShardStore:
    """The rows of one recipe.

    Args:
        root: Folder of all stores.
        recipe: Everything that decides the numbers of a row, beside the image and the view's number.
        about: What a person would want to know of them.
        on_damage: Told of each damaged file that is dropped.
    """

    def __init__(
        self,
        root: Path,
        recipe: dict[str, Any],
        about: dict[str, Any] | None = None,
        on_damage: Callable[[Path], None] = lambda _: None,
    ) -> None:
        self.folder = root / digest(recipe)
        self.recipe = recipe
        self.about = about or {}
        self.on_damage = on_damage
        self._keys: dict[str, list[str]] = {}
        """Of each file, by its name."""
        self._places: dict[str, tuple[str, int]] = {}
        self._costs: dict[str, float] = {}
        """Seconds a row, of each file."""
        self._checked: set[str] = set()
        self._damaged: set[str] = set()
        """Files that were dropped; they are still there where they could not be removed."""
        self._maps: OrderedDict[str, Tensor] = OrderedDict()
        self._row: tuple[torch.Size, torch.dtype] | None = None
        """Shape and type of a row, as the first file that was checked has them."""
        self._use: int | None = None

    def refresh(self) -> None:
        """Learn of files that were added or removed since, by whatever process; drop those that are not whole."""
        self._hold()
        present = {path.name for path in self.folder.glob("*.safetensors")}
        self._forget(self._keys.keys() - present)
        for name in sorted(present - self._keys.keys() - self._damaged):
            try:
                with safe_open(self.folder / name, "pt") as file:
                    said = file.metadata()
                keys, seconds = json.loads(said["keys"]), float(said["seconds"])
                if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
                    raise ValueError(keys)
                if not 0 <= seconds < math.inf:
                    raise ValueError(seconds)
            except FileNotFoundError:
                continue
            except (SafetensorError, KeyError, ValueError, TypeError, RecursionError):
                self._drop(name)
                continue
            self._keys[name] = keys
            self._costs[name] = seconds / max(1, len(keys))
            self._places.update({key: (name, place) for place, key in enumerate(keys)})

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The places in `keys` of rows that are not stored."""
        return [place for place, key in enumerate(keys) if key not in self._places]

    def seconds(self, keys: Sequence[str]) -> float:
        """What computing the rows of `keys` took, as far as they are stored."""
        return sum(self._costs[self._places[key][0]] for key in keys if key in self._places)

    def verify(self, keys: Sequence[str]) -> list[str]:
        """Check the files that hold `keys`, each once in a process; drop the damaged ones and name them."""
        names = {self._places[key][0] for key in keys if key in self._places} - self._checked
        damaged = sorted(name for name in names if not (is_intact(self.folder / name) and self._alike(name)))
        self._checked |= names - set(damaged)
        for name in damaged:
            self._drop(name)
        return damaged

    def read(self, keys: Sequence[str]) -> Tensor:
        """The rows of `keys`, in that order: len(keys) × row. Raises KeyError for one that is not stored."""
        wanted: dict[str, list[tuple[int, int]]] = {}
        for target, key in enumerate(keys):
            name, place = self._places[key]
            wanted.setdefault(name, []).append((target, place))
        rows: Tensor | None = None
        for name, pairs in wanted.items():
            mapped = self._map(name)
            if rows is None:
                rows = torch.empty(len(keys), *mapped.shape[1:], dtype=mapped.dtype)
            targets, places = zip(*pairs, strict=True)
            rows[list(targets)] = mapped[list(places)]
        assert rows is not None, "no rows were asked for"  # noqa: S101 (our callers ask for some)
        return rows

    def write(self, keys: Sequence[str], rows: Tensor, seconds: float = 0.0) -> None:
        """Add a file of rows (len(keys) × row), which took `seconds` to compute."""
        self._hold(make=True)
        rows = rows.contiguous()
        metadata = {
            "keys": json.dumps(list(keys)),
            "seconds": repr(seconds),
            "checksum": _checksum(keys, rows),
        }
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        with atomic_write(path) as aside:
            save_tensors({"rows": rows}, aside, metadata, path)

    @contextmanager
    def computing(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """While the block runs no other process of this host computes rows of this store; `on_wait` if one does.

        The lock is a host's own: several hosts of one run may share the folder, and wait for each other elsewhere.
        """
        self._hold(make=True)
        lock = FileLock(self.folder / f"{socket.gethostname()}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(poll_interval=0.2)
        try:
            yield
        finally:
            lock.release()

    def _map(self, name: str) -> Tensor:
        """The rows of a file, memory-mapped: what is not touched is not read."""
        if name not in self._maps:
            with safe_open(self.folder / name, "pt") as file:
                self._maps[name] = file.get_tensor("rows")
            if len(self._maps) > MAX_OPEN_MAPS:
                self._maps.popitem(last=False)
        self._maps.move_to_end(name)
        return self._maps[name]

    def _alike(self, name: str) -> bool:
        """Whether a file's rows are of the others' shape and type: else they could not be read together."""
        rows = self._map(name)
        self._row = self._row or (rows.shape[1:], rows.dtype)
        return (rows.shape[1:], rows.dtype) == self._row

    def _drop(self, name: str) -> None:
        self.on_damage(self.folder / name)
        self._damaged.add(name)
        with suppress(OSError):  # a store that cannot be written to: forgetting it must do
            (self.folder / name).unlink(missing_ok=True)
        self._forget({name})

    def _forget(self, names: set[str]) -> None:
        for name in names:
            self._keys.pop(name, None)
            self._maps.pop(name, None)
        if names:  # another file may hold the same rows
            self._places = {
                key: (name, place) for name, keys in self._keys.items() for place, key in enumerate(keys)
            }

    def _hold(self, make: bool = False) -> None:
        """Lock the store against removal as long as this process lives, and note the time of its use."""
        recipe, mark = self.folder / RECIPE_FILE, self.folder / USE_LOCK
        while not self._holds():  # it may be removed while it is being opened
            self.release()
            if not recipe.exists():
                if not make:
                    return
                text = json.dumps({"about": self.about, "recipe": self.recipe}, indent=1, default=str)
                write_text(recipe, text)
            try:
                self._use = os.open(mark, os.O_RDONLY) if mark.exists() else os.open(mark, NEW, 0o666)
            except FileNotFoundError:  # removed just now
                continue
            except OSError:  # one that may only be read: nobody removes it
                return
            with suppress(OSError):
                os.utime(recipe)
            try:
                fcntl.flock(self._use, fcntl.LOCK_SH)
            except OSError:  # a file system without locks
                return

    def _holds(self) -> bool:
        """Whether the lock is on the store that is there now, not on one that was removed."""
        if self._use is None:
            return False
        mine = os.fstat(self._use)
        try:
            there = (self.folder / USE_LOCK).stat()
        except OSError:
            return False
        return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino) and (self.folder / RECIPE_FILE).exists()

    def release(self) -> None:
        """Let others remove the store."""
        if self._use is not None:
            os.close(self._use)
            self._use = None


class ShardWriter:
    """Gathers rows into files of a fair size, and writes them beside the computation. A context manager.

    What was gathered is written when the block ends, by whatever exception too.

    Args:
        store: Where the rows go.
        share: The part of the time that passes which these rows cost: 1 / processes that compute side by side.
    """

    def __init__(self, store: ShardStore, share: float = 1.0) -> None:
        self.store = store
        self.share = share
        self._keys: list[str] = []
        self._rows: list[Tensor] = []
        self._extra = 0.0
        self._began = time.monotonic()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._pending: Future[None] | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not isinstance(error, OSError):  # the disk has had its say
                self._flush()
                self._settle()
        except OSError:
            if error is None:
                raise
        finally:
            self._pool.shutdown()

    def add(self, keys: Sequence[str], rows: Tensor, seconds: float = 0.0) -> None:
        """Take rows; `seconds` is what their inputs cost. Raises OSError where an earlier file could not be written."""
        self._keys += keys
        self._rows.append(rows)
        self._extra += seconds
        full = sum(each.nbytes for each in self._rows) >= SHARD_BYTES
        if full or time.monotonic() - self._began >= SHARD_SECONDS:
            self._flush()

    def _flush(self) -> None:
        if not self._keys:
            return
        self._settle()
        now = time.monotonic()
        seconds = (now - self._began) * self.share + self._extra
        self._pending = self._pool.submit(self.store.write, self._keys, torch.cat(self._rows), seconds)
        self._keys, self._rows, self._extra, self._began = [], [], 0.0, now

    def _settle(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None


def is_intact(path: Path) -> bool:
    """Whether a file of rows is one, with the checksum that it was written with."""
    try:
        with safe_open(path, "pt") as file:
            said, rows = file.metadata(), file.get_tensor("rows")
        keys = json.loads(said["keys"])
        return len(rows) == len(keys) and said["checksum"] == _checksum(keys, rows)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError):
        return False


def _checksum(keys: Sequence[str], rows: Tensor) -> str:
    """CRC-32 over keys, shape, type and numbers: against decay of the disk, not against an enemy."""
    head = zlib.crc32(f"{list(keys)} {tuple(rows.shape)} {rows.dtype}".encode())
    return f"{zlib.crc32(rows.flatten().view(torch.uint8).numpy().data, head):08x}"
