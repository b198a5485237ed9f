"""Mean and standard deviation of the color channels, and their cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional

from runner.config.augment_schema import AugmentConfig
from runner.data.channel_stats import channel_statistics
from runner.data.files import FolderFiles
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest
from runner.data.transforms import ViewTransform
from runner.utils.console import Terminal
from runner.utils.errors import UserError

SMALL = AugmentConfig(resize=36, crop=32)

PLAIN = AugmentConfig(resize=40, crop=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, rotation=0.0)


def test_statistics_are_means_over_images_as_in_the_report(
    manifest: Manifest, silent: Terminal, tmp_path: Path
) -> None:
    entries = manifest.select("train")
    statistics = channel_statistics(
        entries, ImageLoader(manifest.files, ViewTransform(SMALL, 0)), tmp_path / "cache", silent
    )
    cropped_images = []
    for entry in entries:
        with Image.open(manifest.root / entry.path) as image:
            cropped = functional.center_crop(functional.resize(image, 36), [32, 32])
            cropped_images.append(np.asarray(cropped, dtype=np.float64) / 255)
    assert statistics.mean == pytest.approx(
        np.mean([image.mean(axis=(0, 1)) for image in cropped_images], axis=0), abs=2e-6
    )
    assert statistics.std == pytest.approx(
        np.mean([image.std(axis=(0, 1)) for image in cropped_images], axis=0), abs=2e-6
    )
    assert statistics.std != pytest.approx(np.std(np.stack(cropped_images), axis=(0, 1, 2)), abs=1e-3)


def test_statistics_do_not_depend_on_the_batch_size(
    manifest: Manifest, silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ImageLoader(manifest.files, ViewTransform(SMALL, 0))
    before = channel_statistics(manifest.select("train"), loader, tmp_path / "a", silent)
    monkeypatch.setattr("runner.data.channel_stats.BATCH_SIZE", 7)
    assert channel_statistics(manifest.select("train"), loader, tmp_path / "b", silent) == before


def test_cached_statistics_read_no_image(manifest: Manifest, silent: Terminal, tmp_path: Path) -> None:
    entries = manifest.select("train")
    cache = tmp_path / "cache"
    first = channel_statistics(entries, ImageLoader(manifest.files, ViewTransform(SMALL, 0)), cache, silent)
    nowhere = ImageLoader(
        FolderFiles(tmp_path / "nowhere"), ViewTransform(dataclasses.replace(SMALL, hue=0.1), 9)
    )
    assert channel_statistics(entries[::-1], nowhere, cache, silent) == first
    with pytest.raises(UserError):
        channel_statistics(entries[1:], nowhere, cache, silent)
    with pytest.raises(UserError):
        channel_statistics(
            entries, dataclasses.replace(nowhere, transform=ViewTransform(PLAIN, 0)), cache, silent
        )


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"mean": [0, 0, 0]}', "null"])
def test_damaged_statistics_are_computed_again(
    manifest: Manifest, silent: Terminal, tmp_path: Path, content: str
) -> None:
    entries = manifest.select("val")
    loader = ImageLoader(manifest.files, ViewTransform(SMALL, 0))
    first = channel_statistics(entries, loader, tmp_path / "cache", silent)
    (cache_file,) = (tmp_path / "cache" / "statistics").iterdir()
    before = cache_file.read_text()
    cache_file.write_text(content)
    assert channel_statistics(entries, loader, tmp_path / "cache", silent) == first
    assert cache_file.read_text() == before
