"""What the tests share: small pictures in class folders, and experiments that run on them in seconds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["OMP_NUM_THREADS"] = (
    "1"  # small tensors: threads that wait for each other cost more than they save
)
os.environ.pop("MLFLOW_TRACKING_URI", None)

from accelerate import Accelerator
from helpers import QUIET, Recorder
from torch import Tensor

from runner.config.parser import parse
from runner.config.schema import Experiment
from runner.features.extractor import Prefix
from runner.training import run
from runner.utils.console import Terminal

COLOURS = {"blue": (40, 60, 200), "green": (50, 180, 70), "red": (210, 50, 40)}


def draw(label: str, number: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """A noisy picture whose colour tells its class: easy to learn, different in every file."""
    random = np.random.default_rng([sorted(COLOURS).index(label), number])
    noise = random.normal(0, 40, (size[1], size[0], 3))
    return Image.fromarray(np.clip(np.array(COLOURS[label]) + noise, 0, 255).astype(np.uint8))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three classes of twelve PNG pictures each."""
    root = tmp_path / "pictures"
    for label in COLOURS:
        (root / label).mkdir(parents=True)
        for number in range(12):
            draw(label, number).save(root / label / f"{number:02}.png")
    return root


@pytest.fixture
def words(pictures: Path, tmp_path: Path) -> list[str]:
    """Command-line words of a small experiment on `pictures`: vgg11 at random weights on 32 px, three epochs."""
    return [
        *("--name", "small", "--data.kind", "folder", "--data.root", str(pictures)),
        *("--cache", str(tmp_path / "cache"), "--tracking.root", str(tmp_path / "mlruns")),
        *("--tracking.system_metrics", "false", "--model.arch", "vgg11", "--model.pool", "1"),
        *("--model.width", "16", "--augment.resize", "36", "--augment.crop", "32", "--augment.views", "2"),
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
        *("--tracking.model", "false", "--tracking.gallery", "0"),
    ]


@pytest.fixture
def make(words: list[str]) -> Callable[..., Experiment]:
    """`make("--train.epochs", "1")`: the small experiment with some settings overridden."""
    return lambda *overrides: parse([*words, *overrides])[0]


@pytest.fixture
def silent() -> Terminal:
    """A terminal that says nothing."""
    return Terminal(speaks=False)


@pytest.fixture(scope="session")
def accelerator():  # type: ignore[no-untyped-def]
    """One process on the CPU, in float32."""
    from accelerate import Accelerator

    return Accelerator(cpu=True, mixed_precision="no")


@pytest.fixture
def train(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[run.Result, Recorder]]:
    """Run an experiment whole but for its drawings, its records in a folder of their own."""
    numbers = iter(range(100))
    monkeypatch.setattr("runner.training.curves.curves", lambda *_: None)

    def start(experiment: Experiment) -> tuple[run.Result, Recorder]:
        tracker = Recorder(tmp_path / f"records {next(numbers)}")
        return run.train(experiment, accelerator, tracker, QUIET), tracker

    return start


@pytest.fixture
def through_prefix(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the first stage of the prefix, call by call."""
    counts: list[int] = []
    through = Prefix.through

    def counting(self: Prefix, values: Tensor, stage: int) -> Tensor:
        if stage == 0:
            counts.append(int(values.flatten(1).any(1).sum()))
        return through(self, values, stage)

    monkeypatch.setattr(Prefix, "through", counting)
    return counts
