"""What `runner search` refuses, and what it says about the images, before it starts anything."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import one_sentence
from helpers import QUIET, Place
from pictures import draw
from searches import study_words

from runner import search
from runner.cli import main
from runner.data.manifest import build_manifest
from runner.study import options, storage
from runner.study.study import Study

pytestmark = pytest.mark.usefixtures("plain_environment")


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`refused(words)`: the sentence with which `runner search` refuses them; no worker may be started."""

    def spawn(*_: object, **__: object) -> None:
        pytest.fail("a worker was started")

    monkeypatch.setattr("runner.study.worker_pool.WorkerPool._spawn", spawn)

    def run(words: list[str]) -> str:
        capfd.readouterr()
        status = main.main(["search", *words])
        errors = capfd.readouterr().err
        assert status == 2, errors
        sentence = one_sentence(errors)
        assert errors == f"runner: {sentence}\n"
        return sentence

    return run


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--space", "around-basline"], "did you mean 'around-baseline'"),
        (["--space", "/no/such.yaml"], "/no/such.yaml"),
        (["--trials", "many"], "--trials"),
        (["--trails", "3"], "trails"),
        (["--optim.lrr", "1"], "did you mean 'optim.lr'"),
        (["--optim.lr", "5"], "the baseline's optim.lr is 5"),
        (["--train.epochs", "none"], "train.epochs"),
        (["--repeat", "2"], "--repeat"),
        (["--data.root", "/no/such/folder"], "/no/such/folder"),
        (["--storage", "nosuch://host/db"], "nosuch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_refused(
    refused: Callable[..., str], place: Place, tmp_path: Path, words: list[str], hint: str
) -> None:
    assert hint in refused([*study_words(place(tmp_path), tmp_path / "space.yaml"), *words])


def test_images_that_changed_since_are_refused(
    refused: Callable[..., str], place: Place, images: Path, tmp_path: Path
) -> None:
    words = study_words(place(tmp_path), tmp_path / "space.yaml")
    plan = options.make_plan(*options.parse(words), checked=True)
    Study(plan.on_images(build_manifest(plan.baseline, QUIET).digest), tmp_path / "mlruns")
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    changed = next(moved.rglob("*.png"))
    draw("red", 99).save(changed)
    sentence = refused([*words, "--data.root", str(moved)])
    assert "the images or their split have changed; choose another --study" in sentence


def test_a_study_needs_a_name(refused: Callable[..., str]) -> None:
    assert "--study" in refused([])


def test_more_workers_than_gpus_are_refused_before_anything_is_created(
    refused: Callable[..., str], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.study.coordinator.gpu_count", lambda: 1)
    assert "GPU" in refused([*study_words(place(tmp_path), tmp_path / "space.yaml"), "--workers", "2"])
    assert not (tmp_path / "mlruns" / storage.JOURNAL).exists()


# What it says about the images


@pytest.fixture
def untidy(images: Path, tmp_path: Path) -> tuple[str, ...]:
    """The words for images of which one is beside the class folders, and one cannot be read."""
    folder = tmp_path / "untidy"
    shutil.copytree(images, folder)
    first, second = sorted(folder.rglob("*.png"))[:2]
    first.rename(folder / "loose.png")
    second.write_bytes(second.read_bytes()[:30])
    return "--data.root", str(folder), "--data.unreadable", "skip"


@pytest.mark.parametrize("launched", [False, True], ids=["runner search", "accelerate launch"])
def test_images_that_are_left_out_are_named_once(
    place: Place,
    untidy: tuple[str, ...],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    launched: bool,
) -> None:
    for name in ("run_trials", "write_report"):
        monkeypatch.setattr(f"runner.study.worker_pool.WorkerPool.{name}", lambda *_: 0)
    monkeypatch.setattr("runner.study.worker.Worker.run", lambda *_: 0)
    monkeypatch.setattr("runner.study.report.write_report", lambda *_: None)
    monkeypatch.setattr("runner.search.signal.signal", lambda *_: None)
    words = [*study_words(place(tmp_path), tmp_path / "space.yaml"), *untidy]
    assert (search.main(words) if launched else main.main(["search", *words])) == 0
    said = capfd.readouterr()
    for part in ("not used: 1 image beside", "left out"):
        assert (said.out + said.err).count(part) == 1
