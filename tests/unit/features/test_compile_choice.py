"""Whether compiling pays is tried once, and the cache keeps the choice."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, small_model
from torch import Tensor

from runner.features import compile_choice, extractor
from runner.features.compile_choice import compiling_pays

IMAGES = 100_000


class Compiler:
    """torch.compile, as a function that takes this much longer for each batch; it counts its calls."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.compiled = 0

    def __call__(self, function: Callable[[Tensor], Tensor], **_: Any) -> Callable[[Tensor], Tensor]:
        self.compiled += 1

        def run(values: Tensor) -> Tensor:
            time.sleep(self.seconds)
            return function(values)

        return run


@pytest.fixture(autouse=True)
def always_worth_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_choice, "worth_compiling", lambda images, size, device: images == IMAGES)


MODEL = small_model(arch="resnet18")


def choose(accelerator: Accelerator, cache: Path, images: int = IMAGES) -> bool:
    return compiling_pays(MODEL, accelerator, 2, images, cache, QUIET)


def test_a_compiler_that_makes_it_slower_is_not_used(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Compiler(seconds=0.3)
    monkeypatch.setattr(torch, "compile", slow)
    assert not choose(accelerator, tmp_path)
    assert not choose(accelerator, tmp_path)
    assert slow.compiled == 1  # the second time, the choice was read


def test_a_compiler_that_makes_it_faster_is_used(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(seconds=0.0))
    monkeypatch.setattr(compile_choice, "LEAST_GAIN", 0.0)
    plain = extractor.FeatureExtractor._run

    def run(self: extractor.FeatureExtractor, values: Tensor, stage: int) -> Tensor:
        time.sleep(0.0 if self.compiled else 0.3)
        return plain(self, values, stage)

    monkeypatch.setattr(extractor.FeatureExtractor, "_run", run)
    assert choose(accelerator, tmp_path)
    (path,) = (tmp_path / "compile").glob("*.json")
    kept = json.loads(path.read_text())
    assert kept["compiled"] is True
    assert kept["fast"] > kept["plain"] > 0


def test_small_datasets_are_not_tried(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", compiler := Compiler(seconds=0.0))
    assert not choose(accelerator, tmp_path, images=1)
    assert not compiler.compiled
    assert not list(tmp_path.iterdir())


def test_a_damaged_choice_is_made_again(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", Compiler(seconds=0.1))
    choose(accelerator, tmp_path)
    (path,) = (tmp_path / "compile").glob("*.json")
    for text in ("", "[]", '{"compiled": true}'):
        path.write_text(text)
        assert not choose(accelerator, tmp_path)
        assert json.loads(path.read_text())["compiled"] is False


def test_a_compiler_that_fails_is_not_used(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Callable[[Tensor], Tensor]:
        def compiled(_: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", fail)
    assert not choose(accelerator, tmp_path)
