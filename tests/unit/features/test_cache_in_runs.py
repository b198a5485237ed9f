"""Whole runs: each image and view is computed once, and the cache changes no bit of a result."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from cached_features import damage_all
from fits import script_validation
from helpers import TEST, TRAIN, VAL, Make, Recorder, comparable

from runner.features.cache import FeatureCache
from runner.features.sources import MappedSource, SplitFeatures
from runner.training import run
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Train = Callable[..., Any]


def test_a_second_run_computes_nothing(make: Make, train: Train, computed_images: list[int]) -> None:
    first, _ = train(make())
    assert sum(computed_images) == 2 * TRAIN + VAL + TEST
    computed_images.clear()
    second, records = train(make())
    assert sum(computed_images) == 0
    assert comparable(first.history) == comparable(second.history)
    metrics = {name: value for name, _, value in records.points}
    assert metrics["system/features/hits"] == 3 * (TRAIN + VAL) + TEST
    assert metrics["system/features/misses"] == 0
    assert metrics["system/features/saved_seconds"] > 0
    assert metrics["system/features/store_mib"] > 0


@pytest.mark.parametrize(("views", "count"), [("none", 1), ("2", 2), ("fresh", 3)])
def test_every_view_is_computed_once(
    make: Make, train: Train, computed_images: list[int], views: str, count: int
) -> None:
    train(make("--augment.views", views, "--schedule.kind", "constant"))
    assert sum(computed_images) == count * TRAIN + VAL + TEST


def test_epochs_use_their_views_in_turn(make: Make, train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    requested: list[int] = []
    get = FeatureCache.get

    def record(self: FeatureCache, split: str, view: int) -> SplitFeatures:
        if split == "train":
            requested.append(view)
        return get(self, split, view)

    monkeypatch.setattr(FeatureCache, "get", record)
    train(make("--schedule.kind", "constant", "--train.epochs", "4"))
    assert requested == [0, 1, 0, 1]


def test_a_run_that_stops_early_computes_no_view_for_later_epochs(
    make: Make, train: Train, computed_images: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    script_validation(monkeypatch, [0.9, 0.5])
    schedule = ("--schedule.kind", "reduce_on_drop", "--schedule.reductions", "1")
    result, _ = train(make("--augment.views", "fresh", *schedule))
    assert len(result.history) == 2
    assert sum(computed_images) == 2 * TRAIN + VAL + TEST


def test_without_a_store_every_epoch_computes(
    make: Make, train: Train, computed_images: list[int], tmp_path: Path
) -> None:
    train(make("--features.store", "false", "--schedule.kind", "constant"))
    assert sum(computed_images) == 3 * (TRAIN + VAL) + 2 * TEST
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.slow
def test_another_head_uses_the_stored_convolutions(
    make: Make, train: Train, computed_images: list[int]
) -> None:
    sizes = ("--augment.crop", "64", "--augment.resize", "64")
    train(make(*sizes))
    computed_images.clear()
    shared, _ = train(make(*sizes, "--model.pool", "2"))
    assert sum(computed_images) == 0
    alone, _ = train(make(*sizes, "--model.pool", "2", "--features.store", "false"))
    assert comparable(shared.history) == comparable(alone.history)


def test_a_memory_mapped_store_gives_the_same_run(
    make: Make, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory, _ = train(make())
    calls: list[int] = []
    batches = MappedSource.batches
    monkeypatch.setattr(
        MappedSource, "batches", lambda self, wanted: calls.append(1) or batches(self, wanted)
    )
    mapped, _ = train(make("--features.memory", "0.000001"))
    assert calls
    assert comparable(in_memory.history) == comparable(mapped.history)
    assert (in_memory.best, in_memory.last) == (mapped.best, mapped.last)


@pytest.mark.parametrize("share", [0.5, 1.0], ids=["truncated", "bit flipped"])
def test_damaged_shards_are_computed_again(
    make: Make,
    train: Train,
    computed_images: list[int],
    tmp_path: Path,
    share: float,
    accelerator: Accelerator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    experiment = make("--augment.views", "1", "--train.epochs", "1")
    first, _ = train(experiment)
    computed_images.clear()
    for path in damage_all(tmp_path / "cache" / "features"):
        os.truncate(path, int(path.stat().st_size * share))
    second = run.train(experiment, accelerator, Recorder(tmp_path / "second"), Terminal())
    assert "is damaged; computing its features again" in capsys.readouterr().out
    assert sum(computed_images) == TRAIN + VAL + TEST
    assert comparable(first.history) == comparable(second.history)
    assert (first.best, first.last) == (second.best, second.last)


def test_too_little_room_is_reported_before_anything_is_computed(
    make: Make, train: Train, computed_images: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"features need .*features\.cap is 1"):
        train(make("--features.cap", "0.0000001"))
    monkeypatch.setattr("runner.features.eviction.free_bytes", lambda _: 1000)
    with pytest.raises(UserError, match=r"features need .*1000 B left.*features\.store"):
        train(make())
    assert not computed_images
