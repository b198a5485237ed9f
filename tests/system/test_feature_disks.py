"""Cached features on disks that are full or read-only."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_features import keys_of
from helpers import Make, comparable

from runner.features.shard_store import ShardStore, ShardWriter
from runner.utils.errors import user_message


@contextmanager
def read_only(folder: Path, mounted: Path) -> Iterator[None]:
    """Mount `folder` read-only at `mounted`; skips the test without the right to mount."""
    mounted.mkdir()
    if shutil.which("mount") is None or subprocess.run(["mount", "--bind", folder, mounted]).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mounted], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", mounted], check=True)


def test_a_read_only_cache_serves_what_it_has(make: Make, train: Callable[..., Any], tmp_path: Path) -> None:
    words = ("--train.epochs", "1")
    first, _ = train(make(*words))
    with read_only(tmp_path / "cache", tmp_path / "read-only"):
        elsewhere = ("--cache", str(tmp_path / "read-only"))
        second, _ = train(make(*words, *elsewhere))
        assert comparable(second.history) == comparable(first.history)
        assert (second.best, second.last) == (first.best, first.last)
        for more in (("--augment.views", "2", "--train.epochs", "2"), ("--features.batch_size", "4")):
            with pytest.raises(OSError, match="Read-only file system") as failure:
                train(make(*words, *elsewhere, *more))
            assert f"{tmp_path}/read-only/features" in str(user_message(failure.value))


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if os.name != "posix" or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        store = ShardStore(disk, {})
        store.write(keys_of("a"), torch.ones(1, 1000))
        with pytest.raises(OSError, match=r"(?i)no space") as failure, ShardWriter(store) as writer:
            writer.add(keys_of("b"), torch.ones(1, 100_000))
        assert "disk is full" in (user_message(failure.value) or "")
        assert len(list(store.folder.iterdir())) == 3
        fresh = ShardStore(disk, {})
        fresh.refresh()
        assert fresh.missing(keys_of("ab")).tolist() == [1]
        store.release()
        fresh.release()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize(
    ("number", "words"), [(28, "disk is full"), (30, "read-only"), (13, "No permission")]
)
def test_a_disk_error_is_one_sentence(number: int, words: str) -> None:
    assert words in (user_message(OSError(number, os.strerror(number), "/place")) or "")
