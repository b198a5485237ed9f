"""How the images of a run and of its reproduction differ."""

from __future__ import annotations

from pathlib import Path

from runner.data.manifest import Entry, Manifest
from runner.training.original_run import manifest_difference


def manifest(**splits: str) -> Manifest:
    return Manifest(Path("/"), tuple(Entry(path, "a", split, 1, "") for path, split in splits.items()))


def test_added_removed_and_moved_images_are_counted() -> None:
    then, now = manifest(a="train", b="val", c="test"), manifest(a="val", c="test", d="train", e="train")
    assert manifest_difference(then, now) == "2 added, 1 removed, 1 moved to another split"
