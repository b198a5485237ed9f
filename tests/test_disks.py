"""Disks that are full or read-only: every writer in turn is refused, says so in a sentence, and goes on later."""

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
from PIL import Image
from safetensors import safe_open
from test_outage import mark_dead
from truth import lies

from runner import train
from runner.cli import main
from runner.tracking import uploader
from runner.tracking.mlflow_server import server
from runner.utils.errors import guarded

ROOM = 1100
"""KiB that the database of an empty store takes, with its log."""
PLENTY = "400m"
TIMES = ("epoch_seconds", "images_per_second", "seconds", "features/", "checkpoints/")
"""What differs between two runs of the same."""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor, no store but the one that a test names, and little patience with it."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setattr(uploader, "LAST_PATIENCE", 1.0)


@contextmanager
def mounted(place: Path, *words: str) -> Iterator[Path]:
    """A mount for as long as the block runs; what cannot be mounted is no test."""
    place.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("mounting takes root")
    outcome = subprocess.run(["mount", *words, str(place)], capture_output=True, text=True)
    if outcome.returncode:
        pytest.skip(f"nothing can be mounted here: {outcome.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def read_only(place: Path) -> Iterator[None]:
    with mounted(place, "--bind", str(place)):
        outcome = subprocess.run(
            ["mount", "-o", "remount,ro,bind", str(place)], capture_output=True, text=True
        )
        if outcome.returncode:
            pytest.skip(f"nothing can be made read-only here: {outcome.stderr.strip()}")
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: creating one takes seconds."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        server(str(root)).connect()
    return root / "mlflow.db"


@pytest.fixture
def store(template: Path) -> Callable[[Path], Path]:
    """`store(root)`: an empty store under `root`."""

    def build(root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        with (
            closing(sqlite3.connect(template)) as source,
            closing(sqlite3.connect(root / "mlflow.db")) as copy,
        ):
            source.backup(copy)
        return root

    return build


Go = Callable[..., tuple[int, str]]


@pytest.fixture
def go(words: list[str], capsys: pytest.CaptureFixture[str]) -> Go:
    """`go(root, cache)`: train the small experiment with everything that can be written: status and errors."""

    def start(root: Path, cache: Path, *more: str) -> tuple[int, str]:
        places = ["--tracking.root", str(root), "--cache", str(cache)]
        everything = ("--tracking.model", "true", "--tracking.gallery", "2", "--checkpoints.epochs", "1")
        capsys.readouterr()
        asked = [*words, *everything, "--features.compile", "false", *places, *more]
        status = guarded(lambda: train.main(asked))
        return status, capsys.readouterr().err

    return start


def refused(outcome: tuple[int, str], *parts: str) -> None:
    """Status 2 and one sentence, no traceback."""
    status, errors = outcome
    assert "Traceback" not in errors
    assert status == 2, errors
    (said,) = [line for line in errors.splitlines() if line.startswith("runner: ")]
    assert any(part in said for part in parts), said


def whole(*places: Path) -> None:
    """Every file under a final name is one; MLflow's copies aside, which are made again."""
    for place in places:
        for path in place.rglob("*"):
            if not path.is_file() or path.name.startswith(".") or "artifacts" in path.parts:
                continue
            if path.suffix == ".safetensors" and "model" not in path.parts and "classifier" not in path.parts:
                with safe_open(path, "pt") as file:
                    assert list(file.keys())
            elif path.suffix == ".json" and "model" not in path.parts:
                json.loads(path.read_text(errors="surrogateescape"))
            elif path.suffix in (".png", ".webp"):
                Image.open(path).verify()
        assert list(place.rglob("*.partial")) == []


def figures(root: Path) -> list[tuple[str, int, float]]:
    """Every point of the FINISHED runs, but for times; of equal ones once, so that two equal runs are as one."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        found: list[Any] = connection.execute(
            "SELECT DISTINCT m.key, m.step, m.value FROM metrics m JOIN runs r ON m.run_uuid = r.run_uuid"
            " WHERE r.status = 'FINISHED' ORDER BY 1, 2"
        ).fetchall()
    return [each for each in found if not each[0].startswith(TIMES)]


@pytest.fixture
def undisturbed(go: Go, store: Callable[[Path], Path], tmp_path: Path) -> list[tuple[str, int, float]]:
    """The figures of the same run on a disk with room."""
    root = store(tmp_path / "calm")
    status, errors = go(root, tmp_path / "calm cache")
    assert status == 0, errors
    return figures(root)


def goes_on(
    go: Go, disk: Path, root: Path, cache: Path, expected: list[tuple[str, int, float]], refuses: bool = True
) -> None:
    """Refused while the disk is full; whole once there is room."""
    outcome = go(root, cache)
    if refuses or outcome[0]:
        refused(outcome, "disk is full", "free some space", "has too little room")
        assert str(disk) in outcome[1] or "database" in outcome[1] or "writing" in outcome[1]
    whole(root, cache)
    subprocess.run(["mount", "-o", f"remount,size={PLENTY}", str(disk)], check=True)
    mark_dead(root / "journals")
    status, errors = go(root, cache, "--resume", "auto")
    assert status == 0, errors
    assert figures(root) == expected
    assert lies(root, cache) == []
    whole(root, cache)
    for path in (root / "artifacts").rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert list(file.keys())


SIZES = (0, 10, 120, 600, 37_200, 40_000, 60_000)
"""KiB that a tracking root has left: for the journal, a snapshot, figures, checkpoints, the model's folder."""
SHORT = (10,)


@pytest.mark.parametrize(
    "left", [pytest.param(size, marks=() if size in SHORT else pytest.mark.slow) for size in SIZES]
)
def test_a_tracking_root_that_fills_up(
    go: Go,
    store: Callable[[Path], Path],
    undisturbed: list[tuple[str, int, float]],
    tmp_path: Path,
    left: int,
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={ROOM + left}k", "tmpfs") as disk:
        goes_on(go, disk, store(disk / "mlruns"), tmp_path / "cache", undisturbed)


@pytest.mark.parametrize("size", [8, *(pytest.param(size, marks=pytest.mark.slow) for size in (300, 900))])
def test_a_disk_too_small_for_the_database(
    go: Go, undisturbed: list[tuple[str, int, float]], tmp_path: Path, size: int
) -> None:
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs") as disk:
        refused(go(disk / "mlruns", tmp_path / "cache"), "disk is full", "database")
        subprocess.run(["mount", "-o", f"remount,size={PLENTY}", str(disk)], check=True)
        status, errors = go(disk / "mlruns", tmp_path / "cache")
        assert status == 0, errors
        assert figures(disk / "mlruns") == undisturbed
        assert lies(disk / "mlruns", tmp_path / "cache") == []


@pytest.mark.parametrize(
    "size", [4, *(pytest.param(size, marks=pytest.mark.slow) for size in (12, 100, 200, 240, 270, 290))]
)
def test_a_cache_that_fills_up(
    go: Go,
    store: Callable[[Path], Path],
    undisturbed: list[tuple[str, int, float]],
    tmp_path: Path,
    size: int,
) -> None:
    """Scan, statistics and rows lie in it; some of these sizes just suffice."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs") as disk:
        root = store(tmp_path / "mlruns")
        goes_on(go, disk, root, disk / "cache", undisturbed, refuses=size < 220)


def test_a_tracking_root_that_may_only_be_read(
    go: Go, store: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = store(tmp_path / "mlruns")
    assert go(root, tmp_path / "cache")[0] == 0
    known = figures(root)
    with read_only(root):
        refused(go(root, tmp_path / "cache"), "read-only", "readonly")
        for words in (["doctor", "--check"], ["sync"]):
            status = guarded(lambda words=words: main.main([*words, "--tracking.root", str(root)]))  # type: ignore[misc]
            errors = capsys.readouterr().err
            assert "Traceback" not in errors
            assert status in (0, 1, 2)
    assert figures(root) == known
    assert lies(root, tmp_path / "cache") == []


def test_a_cache_that_may_only_be_read(go: Go, store: Callable[[Path], Path], tmp_path: Path) -> None:
    """An empty one is refused; one with everything that is needed serves."""
    root, cache = store(tmp_path / "mlruns"), tmp_path / "cache"
    with read_only(tmp_path / "cache"):
        refused(go(root, cache), "read-only")
    assert go(root, cache)[0] == 0
    known = figures(root)
    with read_only(cache):
        status, errors = go(root, cache)
        assert status == 0, errors
    assert figures(root) == known
    assert lies(root, cache) == []


def test_pictures_that_may_only_be_read(
    go: Go, store: Callable[[Path], Path], tmp_path: Path, pictures: Path
) -> None:
    root = store(tmp_path / "mlruns")
    with read_only(pictures):
        status, errors = go(root, tmp_path / "cache")
    assert status == 0, errors
    assert lies(root, tmp_path / "cache") == []
