"""Full and read-only disks: every writer is refused in one sentence, and the run is resumed once there is space.

Disks are mounted, which only root may do; elsewhere these tests are skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import one_sentence
from consistency import inconsistencies
from pictures import small_experiment
from PIL import Image
from safetensors import safe_open
from stores import copy_store, dead_owner, set_owner

from runner import train
from runner.cli import main
from runner.tracking import uploader
from runner.tracking.journal import Journal
from runner.utils.exit_status import run_main

pytestmark = pytest.mark.usefixtures("plain_environment")
EMPTY_STORE = 1100
"""KiB that the database of an empty store takes, with its log."""
ENOUGH = "400m"
TIMES = ("epoch_seconds", "images_per_second", "seconds", "system/")
"""Start of the metrics that differ between two runs of the same experiment."""
Points = list[tuple[str, int, float]]
Train = Callable[..., tuple[int, str]]


@pytest.fixture(autouse=True)
def short_upload_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a run does not wait long for a store whose disk is full."""
    monkeypatch.setattr(uploader, "UPLOAD_TIMEOUT", 1.0)


@contextmanager
def mounted(place: Path, *options: str) -> Iterator[Path]:
    """A mount for as long as the block runs; skips the test if mounting is not possible."""
    place.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount")
    outcome = subprocess.run(["mount", *options, str(place)], capture_output=True, text=True)
    if outcome.returncode:
        pytest.skip(f"nothing can be mounted here: {outcome.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def small_disk(place: Path, kib: int) -> Any:
    """A disk of so many KiB at `place`, for as long as the block runs."""
    return mounted(place, "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs")


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={ENOUGH}", str(disk)], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    """A folder is read-only for as long as the block runs."""
    with mounted(place, "--bind", str(place)):
        remount = ["mount", "-o", "remount,ro,bind", str(place)]
        outcome = subprocess.run(remount, capture_output=True, text=True)
        if outcome.returncode:
            pytest.skip(f"nothing can be made read-only here: {outcome.stderr.strip()}")
        yield


def command_line(settings: list[str], root: Path, cache: Path) -> list[str]:
    """Train with every output turned on."""
    return [
        *settings,
        *("--tracking.model", "true", "--tracking.gallery", "2", "--checkpoints.epochs", "1"),
        *("--features.compile", "false", "--tracking.root", str(root), "--cache", str(cache)),
    ]


@pytest.fixture
def train_on(words: list[str], capsys: pytest.CaptureFixture[str]) -> Train:
    """`train_on(root, cache)`: train the small experiment; its status and errors."""

    def start(root: Path, cache: Path, *options: str) -> tuple[int, str]:
        capsys.readouterr()
        argv = [*command_line(words, root, cache), *options]
        status = run_main(lambda: train.main(argv))
        return status, capsys.readouterr().err

    return start


def check_refused(outcome: tuple[int, str], *alternatives: str) -> None:
    """Status 2 and one sentence that holds one of some texts."""
    status, errors = outcome
    assert status == 2, errors
    sentence = one_sentence(errors)
    assert any(text in sentence for text in alternatives), sentence


def check_files(*places: Path) -> None:
    """Every file under its final name is complete, except MLflow's copies, which are made again."""
    for place in places:
        for path in place.rglob("*"):
            if not path.is_file() or path.name.startswith(".") or "artifacts" in path.parts:
                continue
            if path.suffix == ".safetensors" and "model" not in path.parts and "classifier" not in path.parts:
                with safe_open(path, "pt") as file:
                    assert list(file.keys())
            elif path.suffix == ".json" and {"model", "scans"}.isdisjoint(path.parts):
                json.loads(path.read_text(errors="surrogateescape"))
            elif path.suffix in (".png", ".webp"):
                Image.open(path).verify()
        assert list(place.rglob("*.partial")) == []


def finished_points(root: Path) -> Points:
    """Every point of the finished runs but times; equal points once, so that two equal runs count as one."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        points: Points = connection.execute(
            "SELECT DISTINCT m.key, m.step, m.value FROM metrics m JOIN runs r ON m.run_uuid = r.run_uuid"
            " WHERE r.status = 'FINISHED' ORDER BY 1, 2"
        ).fetchall()
    return [point for point in points if not point[0].startswith(TIMES)]


@pytest.fixture(scope="module")
def undisturbed(images: Path, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Points:
    """The points of the same run on a disk with space."""
    folder = tmp_path_factory.mktemp("undisturbed")
    root, cache = copy_store(mlflow_template, folder / "mlruns"), folder / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("MLFLOW_TRACKING_URI", "")
        assert train.main(command_line(small_experiment(images, cache, root), root, cache)) == 0
    return finished_points(root)


def check_refused_and_resumed(
    train_on: Train, disk: Path, places: tuple[Path, Path], expected: Points, must_fail: bool = True
) -> None:
    """Training in a root and a cache is refused while the disk is full, and completed once it has space."""
    root, cache = places
    outcome = train_on(root, cache)
    if must_fail or outcome[0]:
        check_refused(outcome, "disk is full", "free some space", "has too little room")
        assert str(disk) in outcome[1] or "database" in outcome[1] or "writing" in outcome[1]
    check_files(root, cache)
    enlarge(disk)
    for journal in Journal.find_all(root / "journals"):  # of this process, which would have ended
        set_owner(journal, dead_owner(journal.owner.uri, journal.owner.run_id))
    status, errors = train_on(root, cache, "--resume", "auto")
    assert status == 0, errors
    assert finished_points(root) == expected
    assert inconsistencies(root, cache) == []
    check_files(root, cache)
    for path in (root / "artifacts").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert list(file.keys())


def slow_except(values: tuple[int, ...], quick: int) -> list[Any]:
    """Parameters of which all but one are slow."""
    return [pytest.param(value, marks=[pytest.mark.slow] * (value != quick)) for value in values]


@pytest.mark.parametrize("left", slow_except((0, 10, 120, 600, 36_000, 36_300, 36_900), 10))
def test_a_full_tracking_root(
    train_on: Train, mlflow_template: Path, undisturbed: Points, tmp_path: Path, left: int
) -> None:
    """The disk has so many KiB left: for the journal, a snapshot, figures, checkpoints or the model's folder."""
    with small_disk(tmp_path / "disk", EMPTY_STORE + left) as disk:
        root = copy_store(mlflow_template, disk / "mlruns")
        check_refused_and_resumed(train_on, disk, (root, tmp_path / "cache"), undisturbed)


@pytest.mark.parametrize("size", slow_except((8, 300, 900), 8))
def test_a_disk_too_small_for_the_database(
    train_on: Train, undisturbed: Points, tmp_path: Path, size: int
) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        check_refused(train_on(disk / "mlruns", tmp_path / "cache"), "disk is full", "database")
        enlarge(disk)
        status, errors = train_on(disk / "mlruns", tmp_path / "cache")
        assert status == 0, errors
        assert finished_points(disk / "mlruns") == undisturbed
        assert inconsistencies(disk / "mlruns", tmp_path / "cache") == []


@pytest.mark.parametrize("size", slow_except((4, 12, 100, 200, 240, 270, 290), 4))
def test_a_full_cache(
    train_on: Train, mlflow_template: Path, undisturbed: Points, tmp_path: Path, size: int
) -> None:
    """It holds the scan, statistics and features; some of these sizes are just enough."""
    with small_disk(tmp_path / "disk", size) as disk:
        root = copy_store(mlflow_template, tmp_path / "mlruns")
        must_fail = size < 220
        check_refused_and_resumed(train_on, disk, (root, disk / "cache"), undisturbed, must_fail)


def test_a_read_only_tracking_root(
    train_on: Train, mlflow_template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = copy_store(mlflow_template, tmp_path / "mlruns")
    assert train_on(root, tmp_path / "cache")[0] == 0
    before = finished_points(root)
    with read_only(root):
        check_refused(train_on(root, tmp_path / "cache"), "read-only", "readonly")
        for verb in (["doctor", "--check"], ["sync"]):
            status = main.main([*verb, "--tracking.root", str(root)])
            assert "Traceback" not in capsys.readouterr().err
            assert status in (0, 1, 2)
    assert finished_points(root) == before
    assert inconsistencies(root, tmp_path / "cache") == []


def test_a_read_only_cache(train_on: Train, mlflow_template: Path, tmp_path: Path) -> None:
    """An empty one is refused; one that holds everything needed is enough."""
    root, cache = copy_store(mlflow_template, tmp_path / "mlruns"), tmp_path / "cache"
    with read_only(cache):
        check_refused(train_on(root, cache), "read-only")
    assert train_on(root, cache)[0] == 0
    before = finished_points(root)
    with read_only(cache):
        status, errors = train_on(root, cache)
        assert status == 0, errors
    assert finished_points(root) == before
    assert inconsistencies(root, cache) == []


def test_read_only_images(train_on: Train, mlflow_template: Path, tmp_path: Path, pictures: Path) -> None:
    root = copy_store(mlflow_template, tmp_path / "mlruns")
    with read_only(pictures):
        status, errors = train_on(root, tmp_path / "cache")
    assert status == 0, errors
    assert inconsistencies(root, tmp_path / "cache") == []
