"""What training prints at its start."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner.config.schema import Experiment
from runner.data.manifest import build_manifest
from runner.training.summary import describe_data
from runner.utils.console import Terminal


def test_the_summary_says_how_the_images_lie(
    make: Callable[..., Experiment], pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    around = tmp_path / "around"
    around.mkdir()
    pictures.rename(around / "pict\nures")
    manifest = build_manifest(make("--data.root", str(around)), silent)
    assert describe_data(manifest) == f"{around}: 36 images of 3 classes (class folders in pict\\nures/)"
