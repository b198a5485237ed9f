"""What several test files use: a recorder in MLflow's place, small networks, what of runs can be compared."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from runner.config.schema import Experiment, Normalization
from runner.models.transfer_model import ModelSpec, TransferModel
from runner.tracking.model_registry import ModelInfo
from runner.tracking.tracker import Tracker
from runner.training.results import EpochResult
from runner.utils.console import Terminal

Make = Callable[..., Experiment]
Place = Callable[[Path], list[str]]
"""The words of the small experiment, with an empty store in a folder."""
NUMBERS = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
CLASSES = ("blue", "green", "red")
QUIET = Terminal(enabled=False)
TRAIN, VAL, TEST = 18, 9, 9  # of the thirty-six pictures


@dataclass
class Recorder(Tracker):
    """A tracker that stores what a run logs in memory, and its files in a folder."""

    folder: Path
    name: str = "small"
    points: list[tuple[str, int, float]] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    models: list[ModelInfo] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    def set_tags(self, values: dict[str, str]) -> None:
        self.tags |= values

    def log_metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.points += [(name, step, value) for name, value in values.items()]

    def artifact_path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def local_folder(self, name: str) -> Path:
        return self.folder / name

    def log_model(self, folder: Path, info: ModelInfo) -> None:
        assert (folder / "MLmodel").exists()
        self.models.append(info)

    def log_text(self, name: str, content: str) -> None:
        assert content
        self.artifacts.append(name)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        self.artifacts.append(f"{folder}/{path.name}" if folder else path.name)


def small_model(training_seed: int = 0, random_weights: bool = True, **changes: Any) -> TransferModel:
    """vgg11 with a small pooled head; `changes` are fields of its `ModelSpec`."""
    fields = {
        "arch": "vgg11",
        "head": "pooled",
        "pool": 1,
        "width": 16,
        "dropout": 0.4,
        "trainable": "head",
        "classes": CLASSES,
        "normalization": NUMBERS,
    }
    return TransferModel(ModelSpec(**fields | changes), training_seed, random_weights)


def random_images(count: int = 4, size: int = 32) -> Tensor:
    """Images of noise (count × 3 × size × size, uint8), always the same ones."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def comparable(epochs: Sequence[EpochResult]) -> list[dict[str, Any]]:
    """Everything about epochs but how long they took."""
    plain = [
        {**dataclasses.asdict(epoch), "sample_results": epoch.sample_results.tolist()} for epoch in epochs
    ]
    times = ("seconds", "feature_seconds", "images_per_second")
    return [{k: v for k, v in epoch.items() if k not in times} for epoch in plain]


class InBfloat16:
    """The session's accelerator, as if it computed in bfloat16."""

    mixed_precision = "bf16"

    def __init__(self, accelerator: Accelerator) -> None:
        self._accelerator = accelerator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16)


def checkpoint_content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata, both by name."""
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    return load_file(path), metadata


@contextmanager
def listening(
    words: Sequence[str], path: str, log: Path, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """A server as a process of its own, on a free port that `{port}` stands for in its words: its address.

    Args:
        words: The command.
        path: What answers when the server is ready.
        log: Takes its output.
        environment: Of the process; None: this one's.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as output:
        process = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in words],
            env=environment,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(f"{address}{path}", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.3)
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
