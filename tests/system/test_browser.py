"""Pages as a browser shows them: the report, and MLflow's page of the run that it is of."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import COLORS, draw
from helpers import QUIET, listening
from PIL import Image

from runner.cli import main
from runner.config.parser import parse
from runner.config.repeat import Repeat
from runner.tracking.mlflow_server import tracking_server
from runner.training.repeated import train

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="needs Chromium (Debian's package chromium)"),
]


def browse(*words: str) -> str:
    """What a headless browser says."""
    assert BROWSER is not None
    return subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", *words],
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    ).stdout


def picture(address: str, path: Path, *words: str) -> np.ndarray:
    """What a page looks like: height × width × 3."""
    browse("--window-size=1300,2000", f"--screenshot={path}", *words, address)
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, accelerator: Any) -> Path:
    """A folder with a run in mlruns/ and its report in report/."""
    folder = tmp_path_factory.mktemp("browser")
    for label in COLORS:
        (folder / "pictures" / label).mkdir(parents=True)
        for number in range(12):
            draw(label, number).save(folder / "pictures" / label / f"{number:02}.png")
    words = [
        *("--config", "quickstart", "--name", "small"),
        *("--data.kind", "folder", "--data.root", str(folder / "pictures")),
        *("--cache", str(folder / "cache"), "--tracking.root", str(folder / "mlruns")),
        *("--tracking.system_metrics", "false", "--model.arch", "vgg11", "--model.pool", "1"),
        *(
            "--model.width",
            "16",
            "--augment.resize",
            "36",
            "--augment.crop",
            "32",
            "--augment.views",
            "none",
        ),
        *(
            "--train.epochs",
            "3",
            "--train.batch_size",
            "8",
            "--train.precision",
            "no",
            "--features.batch_size",
            "8",
        ),
        *("--features.compile", "false", "--tracking.gallery", "2"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        train(parse(words)[0], Repeat(), accelerator, QUIET)
        root = ("--tracking.root", str(folder / "mlruns"))
        assert main.main(["evaluate", "latest", *root, "--out", str(folder / "report")]) == 0
    return folder


@pytest.fixture(scope="module")
def pages(place: Path) -> Iterator[str]:
    """`runner ui` on a free port: its address."""
    words = ["ui", "--tracking.root", str(place / "mlruns"), "--port", "{port}"]
    with listening(
        [sys.executable, "-m", "runner.cli.main", *words], "/health", place / "log.txt"
    ) as address:
        yield address


def test_the_report_shows_its_pictures(place: Path, tmp_path: Path) -> None:
    address = (place / "report" / "report.html").as_uri()
    text = browse("--dump-dom", address)
    for heading in ("top-1", "Confusion matrix", "Calibration", *COLORS):
        assert heading in text
    shown = picture(address, tmp_path / "report.png")
    colors = np.unique(shown.reshape(-1, 3)[::7], axis=0)
    assert len(colors) > 500, "text alone has few colors"


def test_mlflows_page_tells_of_model_and_gallery(place: Path, pages: str, tmp_path: Path) -> None:
    client = tracking_server(str(place / "mlruns")).connect()
    experiment = client.get_experiment_by_name("small").experiment_id
    (run,) = client.search_runs([experiment])
    address = f"{pages}/#/experiments/{experiment}/runs/{run.info.run_id}"
    patient = "--virtual-time-budget=30000"
    overview = browse(patient, "--dump-dom", address)
    for text in (run.info.run_name, "Registered models", "test/best/top1", "runner.champion"):
        assert text in overview
    charts = browse("--window-size=1300,9000", patient, "--dump-dom", f"{address}/model-metrics")
    assert "gallery" in charts
    assert picture(address, tmp_path / "run.png", patient).std() > 5
