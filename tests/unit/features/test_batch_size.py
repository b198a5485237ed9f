"""The inference batch is halved until it fits into a GPU's memory; a full memory is simulated on the CPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, small_model
from torch import Tensor

from runner.features import batch_size
from runner.features.batch_size import ON_CPU, ON_GPU, automatic_batch_size, largest_that_fits
from runner.features.extractor import FeatureExtractor
from runner.utils.console import Terminal
from runner.utils.errors import UserError


def fill_memory(monkeypatch: pytest.MonkeyPatch, limit: int) -> list[int]:
    """Let at most `limit` images pass the backbone; returns the list of tried batches."""
    tried: list[int] = []

    def run(self: FeatureExtractor, images: Tensor) -> Tensor:
        tried.append(len(images))
        if len(images) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return images

    monkeypatch.setattr(FeatureExtractor, "__call__", run)
    return tried


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """An accelerator that says it has a GPU."""
    monkeypatch.setattr(batch_size, "_path", lambda *_: tmp_path / "batch_size.json")
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_, **__: self)
    return SimpleNamespace(device=torch.device("cuda"), is_main_process=True)


def test_a_batch_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator) -> None:
    tried = fill_memory(monkeypatch, 70)
    assert largest_that_fits(small_model(), accelerator, 256) == 64
    assert tried == [256, 128, 64]


def test_what_fits_is_run_for_real(accelerator: Accelerator) -> None:
    assert largest_that_fits(small_model(), accelerator, 4) == 4


def test_a_cpu_has_the_usual_one(accelerator: Accelerator, tmp_path: Path) -> None:
    assert automatic_batch_size(small_model(), accelerator, tmp_path, QUIET) == ON_CPU


def test_it_is_tried_once_and_said_always(
    monkeypatch: pytest.MonkeyPatch, on_gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried = fill_memory(monkeypatch, 70)
    for _ in range(2):
        assert automatic_batch_size(small_model(), on_gpu, tmp_path, Terminal()) == 64
        assert "features.batch_size is 64: 256 images did not fit" in capsys.readouterr().out
    assert tried == [256, 128, 64]
    (tmp_path / "batch_size.json").write_text("damaged")
    fill_memory(monkeypatch, 1000)
    assert automatic_batch_size(small_model(), on_gpu, tmp_path, QUIET) == ON_GPU


def test_a_gpu_without_room_for_an_image_is_refused(
    monkeypatch: pytest.MonkeyPatch, on_gpu: Any, tmp_path: Path
) -> None:
    fill_memory(monkeypatch, 0)
    with pytest.raises(UserError, match="not enough memory for one image"):
        automatic_batch_size(small_model(), on_gpu, tmp_path, QUIET)
