"""On the real Caltech-101 with pretrained VGG16 convolutions, where they are at hand."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from helpers import Recorder

from runner.config.parser import parse
from runner.data import manifest
from runner.data.channel_stats import channel_statistics
from runner.data.loader import ImageLoader
from runner.data.transforms import ViewTransform
from runner.training import run
from runner.utils.console import Terminal

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA = Path(os.environ.get("RUNNER_TEST_DATA", SHARED / "data"))
WEIGHTS = Path(os.environ.get("RUNNER_TEST_WEIGHTS", SHARED / "weights" / "vgg16_features.safetensors"))
CATEGORIES = DATA / "caltech101" / "101_ObjectCategories"

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not CATEGORIES.is_dir(), reason=f"no Caltech-101 at {CATEGORIES} (RUNNER_TEST_DATA)"),
]
needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_file(), reason=f"no VGG16 weights at {WEIGHTS} (RUNNER_TEST_WEIGHTS)"
)


def test_the_whole_data_set_is_split_as_the_report_says(tmp_path: Path, silent: Terminal) -> None:
    words = ["--config", "caltech101", "--data.root", str(DATA), "--cache", str(tmp_path)]
    found = manifest.build_manifest(parse(words)[0], silent)
    assert (len(found.entries), len(found.classes)) == (8677, 101)
    for split, share in (("train", 0.5), ("val", 0.25), ("test", 0.25)):
        assert len(found.select(split)) / 8677 == pytest.approx(share, abs=0.01)
    with_background = manifest.build_manifest(parse([*words, "--data.background", "true"])[0], silent)
    assert (len(with_background.entries), len(with_background.classes)) == (9144, 102)
    assert set(found.entries) < set(with_background.entries)


def test_channel_statistics_are_near_the_published_ones(tmp_path: Path, silent: Terminal) -> None:
    words = ["--config", "caltech101", "--data.root", str(DATA), "--cache", str(tmp_path)]
    experiment = parse(words)[0]
    found = manifest.build_manifest(experiment, silent)
    some = found.select("train")[::16]
    numbers = channel_statistics(
        some, ImageLoader(found.files, ViewTransform(experiment.augment, 0)), tmp_path, silent
    )
    assert numbers.mean == pytest.approx((0.534, 0.507, 0.476), abs=0.03)
    assert numbers.std == pytest.approx((0.239, 0.236, 0.237), abs=0.03)


@pytest.mark.slow
@needs_weights
def test_pretrained_convolutions_tell_real_categories_apart(
    tmp_path: Path, silent: Terminal, accelerator: Accelerator
) -> None:
    root = tmp_path / "some"
    for label in ("accordion", "Faces", "Leopards", "pizza"):
        (root / label).mkdir(parents=True)
        for path in sorted((CATEGORIES / label).iterdir())[:15]:
            shutil.copy(path, root / label)
    words = ["--config", "caltech101-pooled", "--data.kind", "folder", "--data.root", str(root)]
    words += ["--model.weights", str(WEIGHTS), "--cache", str(tmp_path / "cache"), "--train.epochs", "12"]
    words += ["--tracking.model", "false", "--tracking.gallery", "0"]
    experiment = parse(
        [*words, "--split.by", "count", "--split.train", "6", "--split.val", "3", "--split.test", "6"]
    )[0]
    torch.set_num_threads(os.cpu_count() or 1)  # conftest has set one: real images are worth more
    result = run.train(experiment, accelerator, Recorder(tmp_path / "staged"), silent)
    assert result.best.images == 24
    assert result.best["top1"] >= 0.9
