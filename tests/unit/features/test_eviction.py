"""All stores of a cache: making room, removing, and what killed processes leave behind."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cached_features import keys_of, old_stores, store_names
from helpers import QUIET
from stores import wait_for

from runner.features import store_lock
from runner.features.eviction import TEMPORARY_FILE_AGE, ensure_space, list_stores, remove_store
from runner.features.shard_store import ShardStore
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.heartbeat import Heartbeat

OLD = {"name": "old"}
"""Recipe of the store that was not used for the longest time."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three stores of 4 kB each."""
    old_stores(tmp_path)
    return tmp_path / "features"


def test_the_least_recently_used_store_is_removed(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oldest = list_stores(root)[-1]
    ensure_space(root, 5000, 14_500, Terminal())
    assert store_names(tmp_path) == ["new", "middle"]
    output = capsys.readouterr().out
    assert oldest.name in output
    assert "features.cap" in output


def test_a_store_in_use_is_not_removed(root: Path, tmp_path: Path) -> None:
    used = ShardStore(root, OLD)
    used.refresh()
    os.utime(used.folder / "recipe.json", (0, 0))
    ensure_space(root, 5000, 14_500, QUIET)
    assert store_names(tmp_path) == ["new", "old"]
    assert not remove_store(next(store for store in list_stores(root) if store.folder == used.folder))
    used.release()


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.mark.parametrize(
    ("place", "value"),
    [("fcntl.flock", no_locks), ("network_file_system", lambda _: "nfs4")],
    ids=["without locks", "with locks of one host"],
)
def test_a_store_that_another_host_used_just_now_is_not_removed(
    root: Path, tmp_path: Path, place: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other host's lock cannot be seen here."""
    monkeypatch.setattr(f"runner.features.store_lock.{place}", value)
    assert [remove_store(store) for store in list_stores(root)] == [False, True, True]
    assert store_names(tmp_path) == ["new"]


def test_a_store_in_use_on_a_network_file_system_is_touched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_lock, "network_file_system", lambda _: "nfs4")
    monkeypatch.setattr(store_lock, "_HEARTBEAT", Heartbeat(store_lock._HEARTBEAT.beat, 0.01))
    used = ShardStore(root, OLD)
    used.refresh()
    recipe = used.folder / "recipe.json"
    os.utime(recipe, (0, 0))
    wait_for(lambda: recipe.stat().st_mtime > 0)
    used.release()
    store_lock._HEARTBEAT.stop()


@pytest.mark.parametrize("name", [".host-{}", ".{}.now"])
def test_what_a_killed_launch_left_is_removed(root: Path, name: str) -> None:
    old, new = root / name.format(1), root / name.format(2)
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    assert len(list_stores(root)) == 3
    assert not old.exists()
    assert new.exists()


def test_what_does_not_fit_is_refused(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensure_space(root, 0, 1, QUIET)
    assert len(store_names(tmp_path)) == 3
    with pytest.raises(UserError, match=r"features need 4\.9 KiB .*features\.cap is 1 B"):
        ensure_space(root, 5000, 1, QUIET)
    monkeypatch.setattr("runner.features.eviction.free_bytes", lambda _: 100)
    with pytest.raises(UserError, match=r"need 4\.9 KiB, but .* has 100 B left"):
        ensure_space(root, 5000, 1e9, QUIET)


def test_nothing_is_removed_if_that_would_not_be_enough(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features\.cap"):
        ensure_space(root, 5000, 4000, QUIET)
    assert len(store_names(tmp_path)) == 3


def test_using_a_store_updates_its_last_use(root: Path, tmp_path: Path) -> None:
    used = ShardStore(root, OLD)
    used.refresh()
    assert store_names(tmp_path)[0] == "old"
    used.release()


def test_a_store_that_was_removed_while_open_is_created_again(root: Path) -> None:
    store = ShardStore(root, OLD)
    store.refresh()
    store.release()
    assert all(remove_store(found) for found in list_stores(root))
    store.refresh()
    assert store.missing(keys_of("a")).tolist() == [0]
    store.write(keys_of("a"), torch.ones(1, 4))
    store.refresh()
    assert store.missing(keys_of("a")).tolist() == []
    store.release()


@pytest.mark.parametrize("name", [".{}.safetensors.x.partial", ".{}.now"])
def test_temporary_files_of_killed_processes_are_deleted(root: Path, name: str) -> None:
    old, new = (ShardStore(root, OLD).folder / name.format(number) for number in (1, 2))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    list_stores(root, tidy=False)
    assert old.exists()
    list_stores(root)
    assert not old.exists()
    assert new.exists()  # it may be written right now


def test_temporary_files_stay_where_this_hosts_clock_is_fast(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another host is writing them."""
    written = (root / ".host-1", ShardStore(root, OLD).folder / ".a.safetensors.x.partial")
    for path in written:
        path.touch()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 2 * TEMPORARY_FILE_AGE)
    list_stores(root)
    assert [path.exists() for path in written] == [True, True]


def test_half_removed_stores_are_deleted(root: Path, tmp_path: Path) -> None:
    folder = ShardStore(root, OLD).folder
    folder.rename(folder.with_name(".removed-x"))
    assert store_names(tmp_path) == ["new", "middle"]
    assert not (root / ".removed-x").exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"description": 3}'])
def test_a_store_without_a_readable_description_is_listed(root: Path, content: str) -> None:
    (ShardStore(root, OLD).folder / "recipe.json").write_text(content)
    stores = list_stores(root)
    assert len(stores) == 3
    assert stores[0].description == {}
