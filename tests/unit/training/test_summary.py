"""What training prints at its start."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from accelerate import Accelerator
from helpers import QUIET

from runner.config.schema import Experiment
from runner.data.manifest import build_manifest
from runner.features.cache import MissingFeatures
from runner.training.setup import prepare
from runner.training.summary import describe_data, describe_model, describe_views, print_start
from runner.utils.console import Terminal


def test_the_summary_says_how_the_images_lie(
    make: Callable[..., Experiment], pictures: Path, silent: Terminal, tmp_path: Path
) -> None:
    around = tmp_path / "around"
    around.mkdir()
    pictures.rename(around / "pict\nures")
    manifest = build_manifest(make("--data.root", str(around)), silent)
    assert describe_data(manifest) == f"{around}: 36 images of 3 classes (class folders in pict\\nures/)"


PLAIN = ("--augment.views", "none", "--augment.crop", "64", "--augment.resize", "64")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--augment.views", "2"), r"augmented, 2 in turn, \d+ px \(seed \d+\)"),
        (PLAIN, "not augmented, 64 px"),
        ((*PLAIN, "--augment.crop_mode", "squash"), "not augmented, whole images, 64 px"),
        ((*PLAIN, "--augment.scales", "[64, 96]"), "not augmented, 64 and 96 px stacked"),
        (
            (*PLAIN, "--augment.scales", "[64, 96, 128]", "--augment.tta", "flips+scales"),
            "not augmented, 64, 96 and 128 px averaged, averaged with mirror images",
        ),
        ((*PLAIN, "--augment.tta", "flips"), "not augmented, 64 px, averaged with mirror images"),
    ],
)
def test_the_summary_says_what_the_model_receives(
    make: Callable[..., Experiment], words: tuple[str, ...], said: str
) -> None:
    assert re.fullmatch(said, describe_views(make(*words)))


def test_the_summary_names_the_layers_that_a_head_pools(make: Callable[..., Experiment]) -> None:
    layers = ("--model.arch", "vgg16", "--model.pooled_layers", "[features.22, features.29]")
    assert describe_model(make(*layers, "--model.head", "linear")) == (
        "vgg16, linear head that pools features.22 and features.29"
    )
    assert describe_model(make("--model.arch", "vgg16", "--model.head", "pooled")) == "vgg16, pooled head"


@pytest.mark.parametrize("free", [2**20, 2**40])
def test_too_little_shared_memory_is_said_where_images_have_to_be_loaded(
    make: Callable[..., Experiment],
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    free: int,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    setup = prepare(make("--data.workers", "8", "--features.batch_size", "256"), accelerator, QUIET)
    print_start(setup, MissingFeatures(0, 0, 0), Terminal())
    assert "slower pipes" not in capsys.readouterr().out
    print_start(setup, MissingFeatures(36, 36, 1000), Terminal())
    assert ("slower pipes" in capsys.readouterr().out) == (free < 2**30)
