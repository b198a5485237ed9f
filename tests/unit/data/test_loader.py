"""Loading views in batches, and files that change after the scan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pictures import draw

from runner.config.augment_schema import AugmentConfig
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest
from runner.data.transforms import EVALUATION_VIEW, ViewTransform
from runner.portable.images import open_rgb
from runner.utils.errors import UserError

SMALL = AugmentConfig(resize=36, crop=32)


@pytest.mark.parametrize("view", [EVALUATION_VIEW, 1])
def test_worker_processes_load_the_same_views_in_the_same_order(manifest: Manifest, view: int) -> None:
    entries = manifest.select("train")
    batches = [[5, 0, 11], [2], [17, 17, 3, 4]]
    transform = ViewTransform(SMALL, 0)
    alone = list(ImageLoader(manifest.files, transform, workers=0).batches(entries, view, batches))
    with_workers = list(ImageLoader(manifest.files, transform, workers=2).batches(entries, view, batches))
    assert [len(batch) for batch in alone] == [3, 1, 4]
    assert all(torch.equal(a, b) for a, b in zip(alone, with_workers, strict=True))
    for batch, indices in zip(alone, batches, strict=True):
        for loaded, index in zip(batch, indices, strict=True):
            entry = entries[index]
            assert torch.equal(loaded, transform(open_rgb(manifest.root / entry.path), entry.digest, view))


def test_workers_auto_starts_no_processes_for_few_images() -> None:
    loader = ImageLoader(Path(), ViewTransform(SMALL, 0))
    assert loader.worker_count(100) == 0
    assert loader.worker_count(10_000) >= 1
    assert ImageLoader(Path(), ViewTransform(SMALL, 0), workers=3).worker_count(1) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_deleted_after_the_scan_is_named(manifest: Manifest, workers: int) -> None:
    entries = manifest.select("train")
    deleted = manifest.root / entries[4].path
    deleted.unlink()
    batches = ImageLoader(manifest.files, ViewTransform(SMALL, 0), workers=workers).batches(
        entries, 0, [[0, 1], [3, 4]]
    )
    assert len(next(batches)) == 2
    with pytest.raises(UserError) as refused:
        next(batches)
    assert str(deleted) in str(refused.value)


def test_a_file_cut_off_after_the_scan_is_named(manifest: Manifest) -> None:
    entries = manifest.select("train")
    path = manifest.root / entries[4].path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=path.name):
        list(
            ImageLoader(manifest.files, ViewTransform(SMALL, 0), workers=0).batches(
                entries, EVALUATION_VIEW, [[4]]
            )
        )


def test_a_file_replaced_by_another_picture_after_the_scan_is_named(manifest: Manifest) -> None:
    entries = manifest.select("train")
    path = manifest.root / entries[4].path
    draw("green", 99, (80, 80)).save(path)
    with pytest.raises(UserError, match=path.name):
        list(
            ImageLoader(manifest.files, ViewTransform(SMALL, 0), workers=0).batches(
                entries, EVALUATION_VIEW, [[4]]
            )
        )
