"""How the images of a run and of its reproduction differ."""

from __future__ import annotations

from pathlib import Path

from runner.data.files import FolderFiles
from runner.data.images import Entry, Images
from runner.data.manifest import Manifest
from runner.training.original_run import manifest_difference


def manifest(**splits: str) -> Manifest:
    images = Images.of(Entry(path, "a", split, 1, "0" * 40) for path, split in splits.items())
    return Manifest(FolderFiles(Path("/")), images)


def test_added_removed_and_moved_images_are_counted() -> None:
    then, now = manifest(a="train", b="val", c="test"), manifest(a="val", c="test", d="train", e="train")
    assert manifest_difference(then, now) == "2 added, 1 removed, 1 moved to another split"
