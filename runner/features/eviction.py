"""All feature stores of a cache: what there is, what goes when it is too much, and `runner store list|remove`."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from runner.utils.atomic_files import free_bytes
from runner.utils.console import Terminal, format_bytes, format_duration
from runner.utils.errors import UserError
from runner.utils.text import printable

RECIPE_FILE = "recipe.json"
"""Says what computes a store's rows; its time stamp is that of the store's last use."""
USE_LOCK = "in-use"
"""Locked, shared, by whoever uses the store."""
HOUR = 3600.0
REMOVED_PREFIX = ".removed-"
"""Begins the name of what is being removed."""
LONGEST = 200
"""Characters of what a recipe says of itself that are shown."""


@dataclass(frozen=True)
class StoreInfo:
    """A store on disk."""

    folder: Path
    about: dict[str, str]
    bytes: int
    used: float
    """When last, in seconds since the epoch."""

    @property
    def name(self) -> str:
        """What a user calls it by."""
        return self.folder.name[:10]


def feature_root(cache: str | Path) -> Path:
    """The folder of a cache's feature stores."""
    return Path(cache).expanduser() / "features"


def list_stores(root: Path, tidy: bool = True) -> list[StoreInfo]:
    """Every store under a root, the one that was used last first.

    Args:
        root: Of a cache.
        tidy: Clear away what killed processes have left.
    """
    found = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.name.startswith(REMOVED_PREFIX):
            if tidy:
                shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            with suppress(FileNotFoundError):  # gone meanwhile
                found.append(_look(folder, tidy))
    return sorted(found, key=lambda each: -each.used)


def remove_store(store: StoreInfo) -> bool:
    """Remove a store, unless a process uses it or it may only be read. Whether it is gone."""
    try:
        with _alone(store):
            aside = store.folder.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}")
            store.folder.rename(aside)  # at once: nobody finds half a store
            shutil.rmtree(aside, ignore_errors=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def is_unused(store: StoreInfo) -> bool:
    """Whether no process uses a store."""
    try:
        with _alone(store):
            return True
    except OSError:
        return False


@contextmanager
def _alone(store: StoreInfo) -> Iterator[None]:
    """Within the block nobody uses the store. Raises OSError where somebody does, or it may only be read."""
    handle = os.open(store.folder / USE_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def ensure_space(root: Path, needed: int, cap: float, terminal: Terminal) -> None:
    """See that `needed` more bytes of rows fit the disk and the cap; to fit the cap, remove what was unused longest.

    Args:
        cap: Bytes that all stores together may take.

    Raises `UserError` where they do not fit.
    """
    if not needed:
        return
    present = list_stores(root)
    taken, free = sum(store.bytes for store in present), free_bytes(root)
    leaving = []
    for store in reversed(present):
        if taken + needed > cap and is_unused(store):
            leaving.append(store)
            taken, free = taken - store.bytes, free + store.bytes
    if taken + needed > cap:
        raise UserError(
            f"This run's features need {format_bytes(needed)} beside {format_bytes(taken)} in use, and features.cap is {format_bytes(cap)};"
            " raise it, take fewer views (augment.views), or set features.store=false."
        )
    if needed > free:
        raise UserError(
            f"This run's features need {format_bytes(needed)}, but {root} has {format_bytes(free)} left; free some space (runner store"
            " list shows what is kept), set cache to another disk, take fewer views, or set features.store=false."
        )
    for store in leaving:
        if remove_store(store):
            terminal.warn(
                f"removed the features {store.name} ({format_bytes(store.bytes)}, unused for"
                f" {format_duration(time.time() - store.used)}): features.cap is {format_bytes(cap)}"
            )


def _look(folder: Path, tidy: bool) -> StoreInfo:
    recipe = folder / RECIPE_FILE
    for path in folder.glob(".*.partial") if tidy else ():  # of a killed process; a living one takes seconds
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > HOUR:
                path.unlink()
    try:
        told = json.loads(recipe.read_text(encoding="utf-8"))["about"].items()
        about = {name: printable(words)[:LONGEST] for name, words in told if isinstance(words, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        about = {}  # of another version, or damaged
    stamp = (recipe if recipe.exists() else folder).stat().st_mtime
    return StoreInfo(folder, about, sum(_bytes(path) for path in folder.iterdir()), stamp)


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
