"""Locks that keep a feature store from being removed while it is used.

Every process that uses a store holds a shared `flock` on a file in it. Who removes a store needs the exclusive one.
Network file systems may keep such locks to one host, or have none. There, users also touch the recipe file again and
again, and a store whose recipe was touched a short time ago is not removed.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runner.utils.atomic_files import write_text
from runner.utils.file_systems import network_file_system
from runner.utils.heartbeat import Heartbeat
from runner.utils.network_files import modified_at, server_time

RECIPE_FILE = "recipe.json"
"""States what computes a store's features. Its modification time is that of the store's last use."""
LOCK_FILE = "in-use"
SHARED_FILE = "shared"
"""Says that several hosts use the store, whatever its file system is called."""
USE_INTERVAL = 60.0
"""Seconds after which a process touches the recipe of a store that it uses on a network file system."""
RECENT_USE = 10 * USE_INTERVAL
"""Seconds without that after which the store may be removed."""

_RECIPES_IN_USE: set[Path] = set()
_HEARTBEAT = Heartbeat(lambda: [*map(_touch, [*_RECIPES_IN_USE])], USE_INTERVAL)


class UseLock:
    """A shared lock on a store.

    Args:
        folder: Of the store.
        recipe: Content of the recipe file of a new store.
    """

    def __init__(self, folder: Path, recipe: str) -> None:
        self.folder = folder
        self.recipe = recipe
        self._descriptor: int | None = None

    def acquire(self, create: bool = False) -> None:
        """Lock the store for as long as this process lives, and update the time of its last use.

        Does nothing if there is no store and `create` is False, or if the store is read-only: nobody can remove it.
        """
        recipe, lock = self.folder / RECIPE_FILE, self.folder / LOCK_FILE
        while not self._is_held():  # the store may be removed while it is opened
            self.release()
            if not recipe.exists():
                if not create:
                    return
                write_text(recipe, self.recipe)
            flags = os.O_RDONLY if lock.exists() else os.O_RDWR | os.O_CREAT
            try:
                self._descriptor = os.open(lock, flags, 0o666)
            except FileNotFoundError:  # removed just now
                continue
            except OSError:  # read-only
                return
            _touch(recipe)
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_SH)
                is_locked = True
            except OSError:  # a file system without locks
                is_locked = False
            if not is_locked or _is_used_by_several_hosts(self.folder):
                self._touch_at_intervals()
            if not is_locked:
                return

    def share(self) -> None:
        """Several hosts use the store, whatever its file system is called: keep it from all of them."""
        with suppress(OSError):  # read-only, or not there yet
            if self.folder.is_dir() and not (self.folder / SHARED_FILE).exists():
                (self.folder / SHARED_FILE).touch()
        if self._descriptor is not None:
            self._touch_at_intervals()

    def _touch_at_intervals(self) -> None:
        _RECIPES_IN_USE.add(self.folder / RECIPE_FILE)
        _HEARTBEAT.start()

    def release(self) -> None:
        """Allow others to remove the store."""
        _RECIPES_IN_USE.discard(self.folder / RECIPE_FILE)
        if self._descriptor is not None:
            with suppress(OSError):  # processes that decode images hold copies of the descriptor
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            os.close(self._descriptor)
            self._descriptor = None

    def _is_held(self) -> bool:
        """Whether the lock is on the store that exists now, not on one that was removed."""
        if self._descriptor is None:
            return False
        own = os.fstat(self._descriptor)
        try:
            current = (self.folder / LOCK_FILE).stat()
        except OSError:
            return False
        same = (own.st_dev, own.st_ino) == (current.st_dev, current.st_ino)
        return same and (self.folder / RECIPE_FILE).exists()


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Within the block, no process uses the store. Raises OSError if one does, or if the store is read-only."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        is_locked = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            is_locked = False
        if (not is_locked or _is_used_by_several_hosts(folder)) and _was_used_recently(folder):
            raise BlockingIOError(errno.EAGAIN, "used a short time ago", str(folder))
        yield
    finally:
        os.close(descriptor)


def _touch(path: Path) -> None:
    with suppress(OSError):
        os.utime(path)


def _is_used_by_several_hosts(folder: Path) -> bool:
    return (folder / SHARED_FILE).exists() or network_file_system(folder) is not None


def _was_used_recently(folder: Path) -> bool:
    try:
        return server_time(folder) - modified_at(folder / RECIPE_FILE) < RECENT_USE
    except FileNotFoundError:  # what is left of a store
        return False
