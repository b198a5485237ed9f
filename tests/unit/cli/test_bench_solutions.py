"""What `runner bench heads` measures, and on what."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import heads
from benchmarks.support.solved_heads import kept_images, measure_solutions, synthetic_images
from runner.config.schema import Experiment
from runner.config.tree import override
from runner.data.transforms import EVALUATION_VIEW
from runner.training import devices, setup
from runner.utils.console import Terminal

SMALL = partial(synthetic_images, 60, 30, 30, 5, (20, 80))


def test_each_solution_has_its_time() -> None:
    figures = measure_solutions(SMALL())
    names = ("solve", "solve_splits", "solve_trial")
    assert [*figures] == [f"{name}_{what}" for name in names for what in ("seconds", "cpu_seconds")]


def test_solutions_are_measured_on_images_whose_features_are_kept(
    make: Callable[..., Experiment], pictures: Path, silent: Terminal
) -> None:
    experiment = make("--train.precision", "no", "--augment.views", "none")
    assert kept_images(experiment) is None  # no features yet
    prepared = setup.prepare(experiment, devices.create_accelerator(experiment), silent)
    for split in ("train", "val", "test"):
        prepared.features.get(split, EVALUATION_VIEW)
    images = kept_images(experiment)
    assert images is not None
    assert str(pictures) in images.origin
    assert len(images.rows) == 36
    assert images.classes == 3
    assert images.rows.features.shape[1] == sum(images.levels) == 14 * 512
    counts = prepared.manifest.counts()
    assert (images.train, images.val) == (counts["train"], counts["val"])
    first = images.rows.features[:, : images.levels[0]].norm(dim=1)
    assert torch.allclose(first, torch.ones(36), atol=1e-3)
    assert kept_images(override(experiment, {"augment.crop": 33})) is None


@pytest.mark.parametrize("given", [["--data.root", "DIR"], ["--data.root=DIR"], []])
def test_the_first_line_says_what_is_measured_on_what(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [word.replace("DIR", str(tmp_path)) for word in given]
    monkeypatch.setattr(heads, "kept_images", lambda _: None)
    monkeypatch.setattr(heads, "synthetic_images", SMALL)
    monkeypatch.setattr(heads, "run_part", lambda *_: {"heads": 32.0})
    studied: list[list[str]] = []
    monkeypatch.setattr(
        heads, "measure_study", lambda argv, _: studied.append([*argv]) or {"study_seconds": 1.0}
    )
    assert heads.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    study = f"a study on the images in {tmp_path}" if given else "no study, which needs data.root"
    assert lines[0] == (
        "Solutions on synthetic rows of Caltech-101's size, heads together and one by one on synthetic rows of"
        f" Caltech-101's size, {study}."
    )
    assert studied == ([words] if given else [])
    assert ("study_seconds" in lines[-1]) == bool(given)
