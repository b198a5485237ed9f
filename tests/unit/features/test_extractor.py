"""Whether to compile the frozen backbone, and what happens if that fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from cached_features import features_of
from helpers import QUIET, Make, comparable, random_images, small_model
from torch import Tensor

from runner.features import extractor
from runner.features.extractor import FeatureExtractor, can_compile, worth_compiling
from runner.training import setup
from runner.utils.errors import UserError


def test_features_do_not_depend_on_the_other_images_of_a_batch(accelerator: Accelerator) -> None:
    extract = FeatureExtractor(small_model().eval(), accelerator, batch_size=4, compiled=False)
    images = random_images(4)
    together = extract(images)
    for index in range(4):
        assert torch.equal(extract(images[index : index + 1]), together[index : index + 1])
    assert not together.is_inference()  # the head trains on it
    assert extract.stage_shapes(images[:1])[-1] == (together.shape[1:], together.dtype)


def test_features_of_networks_that_differ_in_nothing_but_their_construction_are_kept_apart(
    accelerator: Accelerator,
) -> None:
    computed = [
        FeatureExtractor(small_model(arch=arch, input_size=64), accelerator, 4, compiled=False).computation(0)
        for arch in ("timm/resnet18.a1_in1k", "timm/resnet18", "timm/resnet18d", "vgg11")
    ]
    assert computed[0] == computed[1]
    assert computed[0]["arch"] != computed[2]["arch"]
    assert "arch" not in computed[3]  # as in caches of earlier versions


def test_without_a_frozen_backbone_images_are_the_features(accelerator: Accelerator) -> None:
    extract = FeatureExtractor(small_model(trainable="all"), accelerator, batch_size=4, compiled=False)
    images = random_images(2)
    assert torch.equal(extract(images), images)
    assert extract.stage_shapes(images) == [(images.shape[1:], torch.uint8)]


def test_compiling_pays_for_large_datasets_on_a_cpu_with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(extractor, "can_compile", lambda: True)
    assert worth_compiling(4000, 224, cpu)
    assert not worth_compiling(3999, 224, cpu)
    assert not worth_compiling(4000, 112, cpu)
    assert not worth_compiling(10**9, 224, torch.device("cuda"))
    monkeypatch.setattr(extractor, "can_compile", lambda: False)
    assert not worth_compiling(4000, 224, cpu)


def test_compiling_needs_a_working_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not can_compile()
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    assert not can_compile()


def test_auto_is_decided_by_all_images_of_the_dataset(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_compiled(*words: str) -> object:
        return setup.prepare(make(*words), accelerator, QUIET).experiment.features.compile

    assert is_compiled() is False
    monkeypatch.setattr("runner.training.devices.should_compile", lambda *arguments: arguments[3] == 36)
    assert is_compiled() is True
    by_count = ("--split.by", "count", "--split.train", "4", "--split.val", "2", "--split.test", "1")
    assert is_compiled(*by_count) is True


def test_a_failed_compilation_is_one_sentence(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Callable[[Tensor], Tensor]:
        def compiled(_: Tensor) -> Tensor:
            raise torch._dynamo.exc.TorchDynamoException("no compiler\nat all")

        return compiled

    monkeypatch.setattr(torch, "compile", fail)
    features = features_of(make("--features.compile", "true"), accelerator)
    with pytest.raises(UserError, match=r"failed .*no compiler\); set features\.compile=false"):
        features.get("train", 0)


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler")
def test_a_compiled_backbone_computes_the_same_bits_with_and_without_a_store(
    make: Make, train: Callable[..., Any]
) -> None:
    stored, _ = train(make("--features.compile", "true"))
    computed, _ = train(make("--features.compile", "true", "--features.store", "false"))
    assert comparable(stored.history) == comparable(computed.history)
    assert (stored.best, stored.last) == (computed.best, computed.last)
    plain, _ = train(make())
    assert stored.history[-1].train_loss == pytest.approx(plain.history[-1].train_loss, rel=1e-3)
