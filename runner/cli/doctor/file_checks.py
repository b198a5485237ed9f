"""Checks of files: what a killed process left incomplete, and damaged cached features."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from runner.cli.doctor.findings import Examination, Finding, age
from runner.features.eviction import REMOVED_PREFIX, feature_root, list_stores
from runner.tracking.journal import LOCK_NAME, REMOVED_SUFFIX, Journal

ABANDONED_AGE = 3600.0
"""Seconds after which an incomplete file counts as abandoned if its writer is not known."""


def check_partial_files(examination: Examination) -> Iterator[Finding]:
    """A killed process has left incomplete files."""
    root = examination.server.root
    journals = {journal.folder: journal for journal in Journal.find_all(examination.server.journals)}
    for folder in (root, examination.cache):
        for path in sorted(folder.rglob(".*.partial")) if folder.is_dir() else ():
            owners = (journal for place, journal in journals.items() if path.is_relative_to(place))
            journal = next(owners, None)
            if (journal is not None and not journal.alive) or age(path) > ABANDONED_AGE:
                remove = partial(shutil.rmtree, path) if path.is_dir() else path.unlink
                yield examination.resolve(path, "is an incomplete file", remove, "removed")


def check_journal_folder(examination: Examination) -> Iterator[Finding]:
    """The folder of journals holds folders that are not journals, or locks that nobody holds."""
    folder = examination.server.journals
    if not folder.is_dir():
        return
    journals = {journal.folder for journal in Journal.find_all(folder)}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path not in journals:
            if not path.name.endswith(REMOVED_SUFFIX) and _holds_files(path):
                yield Finding(
                    str(path), "holds records, but its owner.json cannot be read: restore that file"
                )
            elif age(path) > ABANDONED_AGE:
                yield examination.resolve(path, "is not a journal", partial(shutil.rmtree, path), "removed")
        elif _is_unused_lock(path):
            yield examination.resolve(path, "is a lock that nobody holds", path.unlink, "removed")


def _holds_files(folder: Path) -> bool:
    """Whether a folder holds a file other than a lock; assumed if it may not be read."""
    try:
        return any(path.is_file() and path.name != LOCK_NAME for path in folder.rglob("*"))
    except OSError:
        return True


def _is_unused_lock(path: Path) -> bool:
    """Whether a path is a lock of a run that nobody has held lately."""
    if not path.name.endswith(".lock"):
        return False
    try:
        with FileLock(path, timeout=0):
            return age(path) > ABANDONED_AGE
    except (Timeout, OSError):
        return False


def check_feature_stores(examination: Examination) -> Iterator[Finding]:
    """Files of cached features do not match their checksum, or a removal was interrupted."""
    root = feature_root(examination.cache)
    if not root.is_dir():
        return
    for path in sorted(root.glob(f"{REMOVED_PREFIX}*")):
        yield examination.resolve(path, "was being removed", partial(shutil.rmtree, path), "removed")
    stores = list_stores(root, tidy=examination.repair)
    if not stores:
        return
    from runner.features.shard_store import is_intact

    total = sum(store.bytes for store in stores) >> 20
    with examination.terminal.progress("check cached features", total, "MiB") as advance:
        for store in stores:
            for path in sorted(store.folder.glob("*.safetensors")):
                try:
                    size, intact = path.stat().st_size, is_intact(path)
                except FileNotFoundError:  # evicted by another process
                    continue
                if not intact:
                    done = "removed: its features are computed again when needed"
                    yield examination.resolve(path, "is damaged", path.unlink, done)
                advance(size >> 20)
