"""The feature cache: what is computed, what is shared, what changes a feature, and what damage does."""

from __future__ import annotations

import dataclasses
import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from cached_features import damage_all, features_of, missing_images, read
from helpers import TRAIN, VAL, InBfloat16, Make
from torch import Tensor

from runner.data.images import SPLITS
from runner.data.transforms import EVALUATION_VIEW
from runner.features.extractor import FeatureExtractor
from runner.features.shard_store import ShardStore
from runner.utils.console import Terminal
from runner.utils.errors import UserError

IMAGENET = ("--model.normalize", "VGG11_Weights.DEFAULT")
"""A normalization that does not depend on the split."""


class TestSharing:
    def test_settings_that_do_not_change_features_use_the_cached_ones(
        self, make: Make, accelerator: Accelerator
    ) -> None:
        features = features_of(make(), accelerator)
        features.get("train", 0)
        features.get("val", EVALUATION_VIEW)
        for same in (
            ("--seed.train", "7"),
            ("--train.batch_size", "4"),
            ("--model.width", "32"),
            ("--model.pool", "2"),
            ("--optim.lr", "0.5"),
            ("--augment.views", "fresh"),
        ):
            assert missing_images(make(*same), accelerator) == (0, 0), same
        for other in (
            ("--features.batch_size", "4"),
            ("--features.compile", "true"),
            ("--augment.interpolation", "bicubic"),
            ("--augment.resize", "40"),
            IMAGENET,
            ("--model.arch", "vgg13"),
            ("--model.pool", "2", "--augment.crop", "64", "--augment.resize", "64"),
        ):
            assert missing_images(make(*other), accelerator) == (TRAIN, VAL), other
        for other_augmentation in (
            ("--seed.augment", "1"),
            ("--augment.rotation", "3"),
            ("--augment.flip", "0.9"),
        ):
            assert missing_images(make(*other_augmentation), accelerator) == (TRAIN, 0), other_augmentation
        in_bfloat16 = InBfloat16(accelerator)
        assert missing_images(make(), in_bfloat16) == (TRAIN, VAL)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "version",
        [
            "torch.__version__",
            "torchvision.__version__",
            "PIL.__version__",
            "runner.features.stages.FEATURES_VERSION",
        ],
    )
    def test_another_version_of_a_library_computes_its_own(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch, version: str
    ) -> None:
        features_of(make(), accelerator).get("val", EVALUATION_VIEW)
        monkeypatch.setattr(version, "99.0")
        assert missing_images(make(), accelerator)[1] == VAL

    def test_another_weight_computes_its_own(self, make: Make, accelerator: Accelerator) -> None:
        features_of(make(), accelerator).get("val", EVALUATION_VIEW)
        assert features_of(make(), accelerator).missing([("val", EVALUATION_VIEW)]).features == 0
        changed = features_of(make(), accelerator)
        bias = changed.extractor.model.get_parameter("features.18.bias")
        bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(1.0))
        assert changed.missing([("val", EVALUATION_VIEW)]).images == VAL

    def test_another_head_needs_only_the_second_stage(self, make: Make, accelerator: Accelerator) -> None:
        sizes = ("--augment.crop", "64", "--augment.resize", "64")
        features_of(make(*sizes), accelerator).get("val", EVALUATION_VIEW)
        missing = features_of(make(*sizes, "--model.pool", "2"), accelerator).missing(
            [("val", EVALUATION_VIEW)]
        )
        assert (missing.images, missing.features) == (0, VAL)
        assert missing.bytes == VAL * 512 * 2 * 2 * 4

    def test_features_follow_an_image_into_another_split(self, make: Make, accelerator: Accelerator) -> None:
        splits = [(split, EVALUATION_VIEW) for split in ("train", "val", "test")]
        features = features_of(make(*IMAGENET), accelerator)
        for split, view in splits:
            features.get(split, view)
        other = features_of(make(*IMAGENET, "--seed.split", "5"), accelerator)
        assert other.manifest.digest != features.manifest.digest
        assert other.missing(splits).images == 0

    def test_another_image_with_the_same_path_computes_its_own(
        self, make: Make, accelerator: Accelerator, pictures: Path
    ) -> None:
        features = features_of(make(*IMAGENET), accelerator)
        entries = sorted(features.manifest.entries, key=lambda entry: (entry.label, entry.size))
        other, entry = next(
            (smaller, larger)
            for smaller, larger in itertools.pairwise(entries)
            if smaller.label == larger.label and larger.split == "val"
        )
        index = features.manifest.select("val").index(entry)
        before = read(features, "val", EVALUATION_VIEW, [index])
        path = features.manifest.root / entry.path
        stat = path.stat()
        path.write_bytes((features.manifest.root / other.path).read_bytes().ljust(entry.size, b"\0"))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        again = features_of(make(*IMAGENET), accelerator)
        assert again.manifest.select("val")[index].path == entry.path
        assert again.missing([("val", EVALUATION_VIEW)]).images == 1
        after = read(again, "val", EVALUATION_VIEW, [index])
        assert not torch.equal(after, before)
        uncached = features_of(make(*IMAGENET, "--features.store", "false"), accelerator)
        assert torch.equal(after, read(uncached, "val", EVALUATION_VIEW, [index]))

    def test_an_image_that_changed_since_the_scan_is_refused(
        self, make: Make, accelerator: Accelerator
    ) -> None:
        features = features_of(make(), accelerator)
        first, second, *_ = (features.manifest.root / entry.path for entry in features.manifest.select("val"))
        second.write_bytes(first.read_bytes())
        with pytest.raises(UserError, match=f"{second} has changed since it was verified"):
            features.get("val", EVALUATION_VIEW)
        assert features.missing([("val", EVALUATION_VIEW)]).images == VAL


class TestSources:
    @pytest.mark.parametrize(
        "batches", [[[3, 0, 8]], [[], [1, 1], [8]], [[0, 1, 2, 3, 4], [5], [6, 7, 8, 0]], [[]]]
    )
    def test_memory_map_and_computation_give_the_same_bits(
        self, make: Make, accelerator: Accelerator, batches: list[list[int]]
    ) -> None:
        in_memory, mapped, computed = (
            list(features_of(make(*more), accelerator).get("val", EVALUATION_VIEW).batches(batches))
            for more in ((), ("--features.memory", "0.000001"), ("--features.store", "false"))
        )
        assert [len(batch) for batch in in_memory] == [len(indices) for indices in batches]
        for one, two, three in zip(in_memory, mapped, computed, strict=True):
            assert torch.equal(one, two)
            assert torch.equal(one, three)

    def test_augmented_views_differ(self, make: Make, accelerator: Accelerator) -> None:
        features = features_of(make(), accelerator)
        views = [read(features, "train", view, range(TRAIN)) for view in (EVALUATION_VIEW, 0, 1)]
        for one, two in itertools.combinations(views, 2):
            assert not torch.equal(one, two)

    def test_memory_is_bounded(self, make: Make, accelerator: Accelerator) -> None:
        feature = 512 * 4 / 2**30
        features = features_of(make("--features.memory", str(feature * (TRAIN + 1))), accelerator)
        assert features.storage is not None
        for view in (0, 1, 2):
            features.get("train", view)
            tables = features.storage.in_memory.tables
            assert [(key[1], table.filled.sum()) for key, table in tables.items()] == [(view, TRAIN)]

    def test_statistics_count_hits_and_misses(self, make: Make, accelerator: Accelerator) -> None:
        features = features_of(make(), accelerator)
        assert features.stats.metrics() == {
            "system/features/hits": 0,
            "system/features/misses": 0,
            "system/features/saved_seconds": 0.0,
        }
        for _ in range(3):
            features.get("val", EVALUATION_VIEW)
        metrics = features.stats.metrics()
        assert (metrics["system/features/hits"], metrics["system/features/misses"]) == (2 * VAL, VAL)
        assert metrics["system/features/images_per_second"] > 0
        stored = [path for folder in features.folders() for path in folder.rglob("*.safetensors")]
        assert sum(path.stat().st_size for path in stored) > VAL * 512 * 4

    def test_statistics_count_each_variant_of_an_image(self, make: Make, accelerator: Accelerator) -> None:
        features = features_of(make("--augment.views", "none", "--augment.tta", "flips"), accelerator)
        for _ in range(3):
            features.get("val", EVALUATION_VIEW)
        metrics = features.stats.metrics()
        assert (metrics["system/features/hits"], metrics["system/features/misses"]) == (4 * VAL, 2 * VAL)


class TestFaults:
    def test_a_damaged_shard_that_cannot_be_deleted_is_ignored(
        self, make: Make, accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected = read(features_of(make(), accelerator), "val", EVALUATION_VIEW, range(VAL))
        damage_all(tmp_path / "cache" / "features")
        unlink = Path.unlink
        notes: list[str] = []

        def refuse(self: Path, missing_ok: bool = False) -> None:
            if self.suffix == ".safetensors":
                raise PermissionError(13, "Permission denied", str(self))
            unlink(self, missing_ok)

        def note(_: Terminal, text: str) -> None:
            notes.append(text)
            assert len(notes) < 10, "endless"

        monkeypatch.setattr(Path, "unlink", refuse)
        monkeypatch.setattr(Terminal, "warn", note)
        again = features_of(make(), accelerator)
        assert torch.equal(read(again, "val", EVALUATION_VIEW, range(VAL)), expected)
        assert again.stats.misses == VAL

    def test_shards_that_are_damaged_again_and_again_are_an_error(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("runner.features.shard_store.is_intact", lambda _: False)
        with pytest.raises(UserError, match="damaged or removed 4 times; check the disk"):
            features_of(make(), accelerator).get("val", EVALUATION_VIEW)

    def test_a_read_only_store_serves_what_it_has(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        features_of(make(), accelerator).get("val", EVALUATION_VIEW)

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied", "features")

        monkeypatch.setattr(os, "utime", refuse)
        monkeypatch.setattr("runner.features.store_lock.write_text", refuse)
        monkeypatch.setattr("runner.features.shard_store.atomic_write", refuse)
        features = features_of(make(), accelerator)
        assert len(read(features, "val", EVALUATION_VIEW, range(VAL))) == VAL
        with pytest.raises(PermissionError):
            features.get("train", 0)

    def test_an_interrupted_computation_stores_what_it_computed(
        self, make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run_stage, calls = FeatureExtractor.run_stage, itertools.count(1)

        def stopping(self: FeatureExtractor, values: Tensor, stage: int) -> Tensor:
            if next(calls) == 3:
                raise KeyboardInterrupt
            return run_stage(self, values, stage)

        monkeypatch.setattr(FeatureExtractor, "run_stage", stopping)
        with pytest.raises(KeyboardInterrupt):
            features_of(make(), accelerator).get("train", 0)
        assert missing_images(make(), accelerator)[0] == TRAIN - 16  # two batches


def test_other_splits_of_the_same_images_share_their_memory(make: Make, accelerator: Accelerator) -> None:
    """Nothing is read twice, and each has statistics of its own."""
    features = features_of(make("--augment.views", "none"), accelerator)
    assert features.storage is not None
    for split in SPLITS:
        features.get(split, EVALUATION_VIEW)
    (table,) = features.storage.in_memory.tables.values()
    assert table.filled.all()
    entries = features.manifest.entries
    moved = dataclasses.replace(entries, splits=np.roll(entries.splits, 5))
    other = features.of(dataclasses.replace(features.manifest, entries=moved))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardStore, "read", None)
        chosen = read(other, "val", EVALUATION_VIEW, range(VAL))
    assert torch.equal(chosen, table.rows[torch.from_numpy(np.flatnonzero(moved.splits == 1))])
    assert (other.stats.served, other.stats.misses, features.stats.misses) == (VAL, 0, len(entries))
