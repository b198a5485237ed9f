"""A feature cache on a file system that several hosts share: caches of old answers, no locks between them."""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from fuse_mounts import COMMANDS, clients_of

from runner.features import eviction, shard_store
from runner.features.claims import LEASE
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore
from runner.features.store_lock import RECENT_USE
from runner.features.work_sharing import SharedWork

KEYS = FeatureKeys(np.random.default_rng(0).integers(0, 256, (400, 20), np.uint8), 0)
FEATURES = torch.arange(len(KEYS))[:, None].float()


@pytest.fixture(params=[*COMMANDS])
def clients(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[Path]]:
    with clients_of(tmp_path / "cache", 3, request.param) as mounted:
        yield mounted


def compute(root: Path, part: int | None, kept_back: float = 0.0) -> list[int]:
    """Compute what a store lacks of `KEYS`; returns the indices of what was computed."""
    store, computed = ShardStore(root, {}), []
    store.refresh()  # so that the client remembers that there is nothing
    with SharedWork(store, KEYS, part, lambda _: None) as work:
        while (taken := work.next()) is not None:
            if len(taken):
                time.sleep(kept_back)
                store.write(KEYS.take(taken), FEATURES[taken])
                store.await_listed(KEYS.take(taken))
            computed += taken.tolist()
    store.await_listed(KEYS)
    assert torch.equal(store.read(KEYS), FEATURES)
    store.release()
    return computed


@pytest.mark.parametrize("parts", [(10, 10, 10), (10, 33, None)], ids=["equal parts", "other parts"])
def test_clients_compute_each_feature_once(clients: list[Path], parts: Sequence[int | None]) -> None:
    with ThreadPoolExecutor() as pool:
        computed = [*pool.map(lambda client, part: compute(client, part, 0.01), clients, parts)]
    assert Counter(itertools.chain(*computed)) == Counter(range(len(KEYS)))


def test_a_client_that_vanished_delays_the_others_by_the_lease(
    clients: list[Path],
) -> None:
    store = ShardStore(clients[0], {})
    store.create()
    folder = store.folder / "claims"
    folder.mkdir()
    owner = '{"host": "node-7/abcd/1", "pid": 1, "started": 1.0, "token": "x"}'
    claim = folder / f"{KEYS.view}."
    claim.write_text(owner)
    os.utime(claim, (time.time() + 3 - LEASE,) * 2)
    start = time.monotonic()
    with ThreadPoolExecutor() as pool:
        computed = [*pool.map(lambda client: compute(client, 10), clients[1:])]
    assert 2 < time.monotonic() - start < 60
    assert Counter(itertools.chain(*computed)) == Counter(range(len(KEYS)))
    store.release()


def test_what_another_client_wrote_is_seen(clients: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the minute for which the client remembers that there is no such folder."""
    monkeypatch.setattr(shard_store, "LISTING_SECONDS", 20.0)
    writer, reader = (ShardStore(client, {}) for client in clients[:2])
    reader.refresh()
    for indices in (range(200), range(200, 400)):
        keys = KEYS.take(indices)
        assert len(reader.missing(keys)) == len(keys)
        writer.write(keys, FEATURES[indices])
        reader.await_listed(keys)
        assert torch.equal(reader.read(keys), FEATURES[indices])
    writer.release()
    reader.release()


def test_a_store_that_another_client_uses_is_not_removed(
    clients: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is not seen, but its recipe is touched."""
    store = ShardStore(clients[0], {})
    store.write(KEYS, FEATURES)
    store.share()
    elsewhere = clients[1]
    (found,) = eviction.list_stores(elsewhere)
    assert not eviction.is_unused(found)
    assert not eviction.remove_store(found)
    monkeypatch.setattr("runner.features.store_lock.server_time", lambda _: time.time() + RECENT_USE + 60)
    assert eviction.remove_store(found)
    assert eviction.list_stores(elsewhere) == []
    store.release()
