"""All feature stores in a cache: listing and removing them, and making room for new features."""

from __future__ import annotations

import json
import shutil
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runner.features.cache_hosts import MARKER_PREFIX
from runner.features.store_lock import RECIPE_FILE, exclusive_lock
from runner.utils.atomic_files import free_bytes
from runner.utils.console import Terminal, format_bytes, format_duration
from runner.utils.errors import UserError
from runner.utils.network_files import PROBE_SUFFIX, server_time
from runner.utils.paths import cache_folder
from runner.utils.text import printable

REMOVED_PREFIX = ".removed-"
"""Start of the name of a folder that is being removed."""
TEMPORARY_FILE_AGE = 3600.0
"""Seconds after which a temporary file was left by a killed process: it is needed for seconds."""
TEMPORARY_FILES = (".*.partial", f".*{PROBE_SUFFIX}")
"""Names of the temporary files in a store."""
MAX_DESCRIPTION = 200
"""Characters shown of each value in a store's description."""


@dataclass(frozen=True)
class StoreInfo:
    """A feature store on disk."""

    folder: Path
    description: dict[str, str]
    """What the features are, for people; empty if its file is damaged or of another version."""
    bytes: int
    last_used: float
    """Seconds since the epoch."""

    @property
    def name(self) -> str:
        """A short name for users."""
        return self.folder.name[:10]


def feature_root(cache: str | Path) -> Path:
    """The folder of a cache's feature stores."""
    return cache_folder(cache) / "features"


def list_stores(root: Path, tidy: bool = True) -> list[StoreInfo]:
    """Every store under a root, the most recently used first.

    Args:
        root: From `feature_root`.
        tidy: Delete what killed processes left behind.
    """
    stores = []
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.name.startswith(REMOVED_PREFIX):
            if tidy:
                shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            with suppress(FileNotFoundError):  # removed by another process just now
                stores.append(_inspect(folder, tidy))
        elif tidy and (folder.name.startswith(MARKER_PREFIX) or folder.match(f".*{PROBE_SUFFIX}")):
            _remove_if_left_over(folder)
    return sorted(stores, key=lambda store: -store.last_used)


def remove_store(store: StoreInfo) -> bool:
    """Remove a store unless it is used or read-only. Returns whether it is gone."""
    try:
        with exclusive_lock(store.folder):
            removed = store.folder.with_name(f"{REMOVED_PREFIX}{uuid.uuid4().hex}")
            store.folder.rename(removed)  # so that nobody finds a part of a store
            shutil.rmtree(removed, ignore_errors=True)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def is_unused(store: StoreInfo) -> bool:
    """Whether a store can be removed: no process uses it, and it is not read-only."""
    try:
        with exclusive_lock(store.folder):
            return True
    except OSError:
        return False


def ensure_space(root: Path, needed: int, max_bytes: float, terminal: Terminal) -> None:
    """Make room for new features: stores are removed, the least recently used first, until the limit is kept.

    Args:
        root: From `feature_root`.
        needed: Bytes of the new features.
        max_bytes: What all stores together may take.
        terminal: Reports each removal.

    Raises `UserError`, and removes nothing, if there is not enough room on the disk or within the limit.
    """
    if not needed:
        return
    stores = list_stores(root)
    used, free = sum(store.bytes for store in stores), free_bytes(root)
    evicted = []
    for store in reversed(stores):
        if used + needed > max_bytes and is_unused(store):
            evicted.append(store)
            used, free = used - store.bytes, free + store.bytes
    if used + needed > max_bytes:
        raise UserError(
            f"This run's features need {format_bytes(needed)} besides {format_bytes(used)} in use, but features.cap is"
            f" {format_bytes(max_bytes)}; increase it, use fewer augmented views (augment.views), or set"
            " features.store=false."
        )
    if needed > free:
        raise UserError(
            f"This run's features need {format_bytes(needed)}, but {root} has {format_bytes(free)} left; free some"
            " space (./launch.sh store list shows cached features), set cache to another disk, use fewer augmented"
            " views (augment.views), or set features.store=false."
        )
    for store in evicted:
        if remove_store(store):
            terminal.warn(
                f"removed the cached features {store.name} ({format_bytes(store.bytes)}, last used"
                f" {format_duration(time.time() - store.last_used)} ago): features.cap is {format_bytes(max_bytes)}"
            )


def _inspect(folder: Path, tidy: bool) -> StoreInfo:
    recipe = folder / RECIPE_FILE
    for pattern in TEMPORARY_FILES if tidy else ():
        for path in folder.glob(pattern):
            _remove_if_left_over(path)
    try:
        values = json.loads(recipe.read_text(encoding="utf-8"))["description"].items()
        description = {
            name: printable(value)[:MAX_DESCRIPTION] for name, value in values if isinstance(value, str)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        description = {}
    last_used = (recipe if recipe.exists() else folder).stat().st_mtime
    return StoreInfo(folder, description, sum(_size(path) for path in folder.iterdir()), last_used)


def _remove_if_left_over(path: Path) -> None:
    with suppress(OSError):
        # By the file server's clock: another host may have written the file, and this host's clock may be wrong.
        if server_time(path.parent) - path.stat().st_mtime > TEMPORARY_FILE_AGE:
            path.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
