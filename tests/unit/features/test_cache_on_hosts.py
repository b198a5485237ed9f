"""The work of filling a cache that several hosts use, and of a launch on several hosts."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate import Accelerator
from cached_features import features_of
from helpers import TRAIN, Make
from stores import RecordingTerminal

from runner.data.images import Images
from runner.data.transforms import EVALUATION_VIEW
from runner.features.cache_hosts import CacheHosts
from runner.features.stages import CacheStats, StoredStages
from runner.features.work_sharing import SharedWork


@pytest.mark.parametrize(
    ("shared", "kind", "parts"),
    [("auto", None, 1), ("auto", "nfs4", 2), ("true", None, 2), ("false", "nfs4", 1)],
)
def test_a_cache_that_several_hosts_use_is_filled_in_parts(
    shared: str,
    kind: str | None,
    parts: int,
    make: Make,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("runner.features.stages.network_file_system", lambda _: kind)
    monkeypatch.setattr("runner.features.stages.BATCHES_PER_PART", 1)
    rounds: list[int] = []
    compute = StoredStages._compute_round

    def counting(self: StoredStages, stage: int, entries: Images, view: int, stats: CacheStats) -> None:
        rounds.append(stage)
        compute(self, stage, entries, view, stats)

    monkeypatch.setattr(StoredStages, "_compute_round", counting)
    features = features_of(make("--features.shared", shared), accelerator)
    features.get("train", 0)
    assert features.stats.misses == TRAIN
    assert rounds.count(1) == parts, "18 images in batches of 8"


def test_a_launch_with_several_caches_takes_parts_at_each(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them end a round together: none takes everything, and waiting for another one is not its own work."""
    hosts, waited, hour = CacheHosts([0], 1, 2, ["node-2"], []), 0, 3600
    sizes: list[int] = []
    reported: list[float] = []
    next_round = SharedWork.next

    def wait(_: Accelerator) -> None:
        nonlocal waited
        waited += hour

    def noting(self: SharedWork, seconds: float) -> np.ndarray | None:
        reported.append(seconds)
        indices = next_round(self, seconds)
        sizes.append(0 if indices is None else len(indices))
        return indices

    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + waited)
    monkeypatch.setattr("runner.features.stages.time", clock)
    monkeypatch.setattr("runner.features.stages.find_cache_hosts", lambda *_: hosts)
    monkeypatch.setattr("runner.features.stages.BATCHES_PER_PART", 1)
    monkeypatch.setattr(Accelerator, "wait_for_everyone", wait)
    monkeypatch.setattr(SharedWork, "next", noting)
    features_of(make(), accelerator).get("train", 0)
    assert waited > 0
    assert max(sizes) < TRAIN
    assert 0 < max(reported) < hour


def test_hosts_with_other_libraries_do_not_compute_together(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stores differ: a feature would be written where the other host does not look for it."""
    recipes: list[str] = []

    def find(_root: Path, _rank: int, recipe: str) -> CacheHosts:
        recipes.append(recipe)
        return CacheHosts([0], 1, 2, [], ["node-2"])

    monkeypatch.setattr("runner.features.stages.find_cache_hosts", find)
    terminal = RecordingTerminal()
    for version in ("6.2", "6.2", "9.6"):
        monkeypatch.setattr("PIL.features.version", {"jpg": version}.get)
        features_of(make(), accelerator, terminal).get("val", EVALUATION_VIEW)
    assert recipes[0] == recipes[1] != recipes[2]
    assert "node-2 cannot share features with the first host" in terminal.warnings[0]
