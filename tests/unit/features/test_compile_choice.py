"""Compiling is tried once. The cache keeps the measured speed, which decides for any number of images."""

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
from runner.features.compile_choice import BackboneSpeed, known_choice, should_compile

IMAGES, FEWEST = 100_000, 1000


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
    monkeypatch.setattr(compile_choice, "worth_compiling", lambda images, size, device: images >= FEWEST)


MODEL = small_model(arch="resnet18")


def choose(accelerator: Accelerator, cache: Path, images: int = IMAGES) -> bool:
    return should_compile(MODEL, accelerator, 2, images, cache, QUIET)


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
    assert kept["compiled_ips"] > kept["eager_ips"] > 0


def test_small_datasets_are_not_tried(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", compiler := Compiler(seconds=0.0))
    assert not choose(accelerator, tmp_path, images=1)
    assert not compiler.compiled
    assert not list(tmp_path.iterdir())


def test_a_damaged_measurement_is_made_again(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compile_choice, "_measure", lambda *_: BackboneSpeed(20.0, 10.0, 5.0))
    choose(accelerator, tmp_path)
    (path,) = (tmp_path / "compile").glob("*.json")
    whole = path.read_text()
    speed = '{"eager_ips": %s, "compiled_ips": 99, "compile_seconds": 0}'
    older = '{"compiled": true, "plain": 20.0, "fast": 99.0, "compile_seconds": 0.0}'
    for text in ("", "[]", older, speed % "0", speed % "NaN", speed % "null"):
        path.write_text(text)
        assert not choose(accelerator, tmp_path)
        assert path.read_text() == whole


def test_a_compiler_that_fails_is_not_used(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Callable[[Tensor], Tensor]:
        def compiled(_: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no compiler")

        return compiled

    monkeypatch.setattr(torch, "compile", fail)
    assert not choose(accelerator, tmp_path)


def test_one_measurement_decides_for_each_number_of_images(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        compile_choice, "_measure", lambda *_: BackboneSpeed(20.0, 25.0, compile_seconds=60.0)
    )
    assert not choose(accelerator, tmp_path, images=5000)
    monkeypatch.setattr(compile_choice, "_measure", None)  # a call would fail
    assert choose(accelerator, tmp_path, images=1_000_000)
    assert choose(accelerator, tmp_path, images=10_000)
    monkeypatch.setattr(type(accelerator), "num_processes", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert choose(accelerator, tmp_path, images=10_000), "as many processes and threads as there may be"


def test_speeds_decide() -> None:
    assert BackboneSpeed(20.0, 25.0, 60.0).is_faster_compiled(
        6001
    )  # they take 300 s, or 240 s after compiling
    assert not BackboneSpeed(20.0, 25.0, 60.0).is_faster_compiled(6000)
    assert not BackboneSpeed(20.0, 20.5, 0.0).is_faster_compiled(10**9), "a gain that small may be none"
    assert not BackboneSpeed(20.0, 0.0, 0.0).is_faster_compiled(10**9), "compiling failed"


def test_what_is_known_without_measuring(
    accelerator: Accelerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known(images: int) -> bool | None:
        return known_choice(MODEL, accelerator, 2, images, tmp_path)

    monkeypatch.setattr(
        compile_choice, "_measure", lambda *_: BackboneSpeed(20.0, 25.0, compile_seconds=60.0)
    )
    assert known(IMAGES) is None
    assert known(1) is False  # too few to try
    choose(accelerator, tmp_path)
    assert known(IMAGES) is True
    assert known(5000) is False


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, int]]:
    """Whether compiled, and images, of each batch. On the clock each image takes a third of a second."""
    clock, batches = [0.0], []

    def run_stage(self: extractor.FeatureExtractor, values: Tensor, stage: int) -> Tensor:
        assert len(values) == self.batch_size, "none is padded"
        clock[0] += len(values) / 3 + 40 * (self.compiled and not any(compiled for compiled, _ in batches))
        batches.append((self.compiled, len(values)))
        return values

    monkeypatch.setattr(extractor.FeatureExtractor, "run_stage", run_stage)
    monkeypatch.setattr(compile_choice.time, "monotonic", lambda: clock[0])
    return batches


@pytest.mark.parametrize("batch_size", [1, 8, 32, 256])
def test_a_slow_network_is_measured_for_seconds(
    accelerator: Accelerator, batches: list[tuple[bool, int]], batch_size: int
) -> None:
    speed = compile_choice._measure(MODEL, accelerator, batch_size)
    for way in (False, True):
        sizes = [images for compiled, images in batches if compiled is way]
        assert len(sizes) >= 2
        assert sum(sizes) / 3 < 15
    assert speed.eager_ips == pytest.approx(3)
    assert speed.compiled_ips == pytest.approx(3)
    assert speed.compile_seconds == pytest.approx(40)


def test_measuring_draws_no_random_numbers(accelerator: Accelerator, batches: list[tuple[bool, int]]) -> None:
    before = torch.random.get_rng_state()
    compile_choice._measure(MODEL, accelerator, 2)
    assert batches
    assert torch.equal(torch.random.get_rng_state(), before)
