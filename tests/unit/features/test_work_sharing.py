"""Several processes that need the same features: each feature is computed once, and nobody waits for the dead."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.features import work_sharing
from runner.features.claims import LEASE
from runner.features.keys import FeatureKeys
from runner.features.shard_store import ShardStore
from runner.features.work_sharing import SharedWork, _prefix_length

VIEW = 3


def random_keys(count: int, seed: int = 0) -> FeatureKeys:
    return FeatureKeys(np.random.default_rng(seed).integers(0, 256, (count, 20), np.uint8), VIEW)


def compute(
    root: Path,
    keys: FeatureKeys,
    part: int | None,
    on_wait: Callable[[str], None] = lambda _: None,
    seconds: float = 0.001,
) -> list[list[int]]:
    """Compute what a store lacks of some keys, as a process does; returns the indices of each round.

    Args:
        root: Folder of the store.
        keys: The features that are needed.
        part: Images in a part.
        on_wait: See `SharedWork`.
        seconds: What each round is said to take.
    """
    store, rounds = ShardStore(root, {}), []
    with SharedWork(store, keys, part, on_wait) as work:
        while (taken := work.next(seconds)) is not None:
            if len(taken):
                rounds.append(taken.tolist())
                store.write(keys.take(taken), torch.from_numpy(taken)[:, None].float())
    store.refresh()
    assert len(store.missing(keys)) == 0
    store.release()
    return rounds


def compute_at_once(root: Path, keys: FeatureKeys, parts: Sequence[int | None]) -> list[list[list[int]]]:
    """The rounds of some processes, which threads play."""
    with ThreadPoolExecutor(len(parts)) as pool:
        return [*pool.map(lambda part: compute(root, keys, part), parts)]


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work_sharing, "POLL", 0.002)


@settings(max_examples=8, deadline=None)
@given(
    count=st.integers(1, 120),
    parts=st.lists(st.one_of(st.none(), st.integers(1, 40)), min_size=2, max_size=4),
)
def test_each_feature_is_computed_once(
    tmp_path_factory: pytest.TempPathFactory, count: int, parts: list[int | None]
) -> None:
    root, keys = tmp_path_factory.mktemp("store"), random_keys(count)
    results = compute_at_once(root, keys, parts)
    computed = Counter(index for rounds in results for taken in rounds for index in taken)
    assert computed == Counter(range(count))


def test_one_host_computes_everything_at_once(tmp_path: Path) -> None:
    assert compute(tmp_path, random_keys(100), None) == [[*range(100)]]
    assert not [*tmp_path.glob("*/claims/*")]


def test_rounds_grow_where_nobody_else_computes(tmp_path: Path) -> None:
    rounds = compute(tmp_path, random_keys(1024), 8)
    sizes = [len(taken) for taken in rounds]
    assert sizes[0] < 30, "one part, to learn the speed"
    assert max(sizes) > 100
    assert len(rounds) < 40, "of 128 parts"
    assert sum(sizes) == 1024


def test_rounds_stay_small_where_computing_is_slow(tmp_path: Path) -> None:
    rounds = compute(tmp_path, random_keys(256), 32, seconds=60.0)
    assert len(rounds) == 8, "a part each"


@pytest.mark.parametrize(
    ("free", "others", "seconds_per_image", "expected"),
    [
        (1000, 0, None, 0),
        (1000, 0, 0.01, 500),
        (1000, 3, 0.01, 125),
        (1000, 0, 0.1, 200),
        (400, 0, 0.01, 400),
        (400, 9, 0.01, 400),
        (0, 0, 1.0, 0),
    ],
    ids=["one part", "half", "half of a share", "20 s", "the last 5 s", "the last 5 s, of many", "none"],
)
def test_images_of_a_round(free: int, others: int, seconds_per_image: float | None, expected: float) -> None:
    assert work_sharing.images_at_once(free, others, seconds_per_image) == pytest.approx(expected)


def test_few_images_of_nearly_complete_parts_say_little_of_a_part() -> None:
    """The last round took 5 s for 10 images; a part of 1,000 images takes 500 s."""
    free = dict.fromkeys(range(8), 1000)
    assert work_sharing._parts_at_once(free, others=0, seconds_per_image=0.5) == [0]
    assert work_sharing._parts_at_once(free, others=0, seconds_per_image=0.005) == [0, 1, 2, 3]
    assert work_sharing._parts_at_once({}, others=0, seconds_per_image=0.5) == []


class TestADeadOwner:
    @pytest.fixture(autouse=True)
    def claim(self, tmp_path: Path) -> Path:
        """A process of another host has claimed everything, and has died: the lease ends in a second."""
        store = ShardStore(tmp_path, {})
        store.create()
        folder = store.folder / "claims"
        folder.mkdir()
        claim = folder / f"{VIEW}."
        claim.write_text('{"host": "node-7/abcd/1", "pid": 1, "started": 1.0, "token": "x"}')
        os.utime(claim, (time.time() + 1 - LEASE,) * 2)
        return claim

    def test_delays_others_by_the_lease(self, tmp_path: Path, claim: Path) -> None:
        waited: list[str] = []

        def on_wait(host: str) -> None:
            waited.append(host)
            os.utime(claim, (time.time() - LEASE - 1,) * 2)  # the lease ends now

        os.utime(claim)
        start = time.monotonic()
        assert compute(tmp_path, random_keys(10), None, on_wait) == [[*range(10)]]
        assert waited == ["node-7"]
        assert time.monotonic() - start < LEASE

    def test_is_replaced_by_one_of_several(self, tmp_path: Path) -> None:
        results = compute_at_once(tmp_path, random_keys(40), [10, 10, None])
        assert sorted(index for rounds in results for taken in rounds for index in taken) == [*range(40)]


def test_a_feature_that_does_not_stay_is_not_tried_for_ever(tmp_path: Path) -> None:
    store, keys = ShardStore(tmp_path, {}), random_keys(5)
    with SharedWork(store, keys, None, print) as work:
        assert work.next() is not None
        assert work.next() is None, "nothing was stored"
    store.release()


def test_bits_that_tell_parts_apart() -> None:
    first = np.arange(0, 2**32, 2**22, dtype=np.int64)  # 1024 digests, evenly
    assert _prefix_length(first, None) == 0
    assert _prefix_length(first, 2000) == 0
    assert _prefix_length(first, 256) == 2
    assert _prefix_length(first, 1) == work_sharing.MAX_SPLITS
    assert _prefix_length(first[:512], 256) == 1 + 1, "all begin with 0"
    assert _prefix_length(first[5:6], 256) == 32
