"""OpenVINO computes the features that torch computes, up to rounding; they have keys of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, Make, small_model

from runner.features import openvino
from runner.features.extractor import Compiled, FeatureExtractor
from runner.training.devices import adapt_to_device
from runner.training.setup import prepare
from runner.utils.errors import UserError

IMAGES = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def extractor(accelerator: Accelerator, compiled: Compiled, arch: str = "vgg11") -> FeatureExtractor:
    return FeatureExtractor(small_model(arch=arch).eval(), accelerator, 4, compiled)


@pytest.mark.parametrize("arch", ["vgg11", "resnet18", "timm/tf_efficientnet_lite0", "vit_b_32"])
def test_features_are_those_of_torch_up_to_rounding(accelerator: Accelerator, arch: str) -> None:
    side = 224 if arch == "vit_b_32" else 64
    images = IMAGES if side == 64 else torch.nn.functional.interpolate(IMAGES, (side, side))
    expected, found = (extractor(accelerator, each, arch)(images) for each in (False, "openvino"))
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_feature_has_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    accelerator: Accelerator,
) -> None:
    threads = torch.get_num_threads()
    together = extractor(accelerator, "openvino")(IMAGES)
    try:
        torch.set_num_threads(threads + 1)
        alone = extractor(accelerator, "openvino")
        found = torch.cat([alone(image) for image in IMAGES.split(1)])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found, together)
    assert found is not together


def test_its_features_have_keys_of_their_own(accelerator: Accelerator) -> None:
    recipes = [extractor(accelerator, each).recipe(0) for each in (False, True, "openvino")]
    assert [recipe["compiled"] for recipe in recipes[:2]] == [False, True]
    assert recipes[2]["compiled"] == f"openvino {openvino.openvino_version()}"


def test_a_run_trains_on_its_features(make: Make, train: Callable[..., Any]) -> None:
    result, _ = train(make("--features.compile", "openvino"))
    expected, _ = train(make("--features.compile", "false"))
    assert result.best["loss"] == pytest.approx(expected.best["loss"], rel=1e-2)


def test_a_missing_package_is_refused_and_does_without_in_evaluation(
    make: Make, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino, "find_spec", lambda _: None)
    monkeypatch.setattr("runner.training.devices.has_openvino", openvino.has_openvino)
    experiment = make("--features.compile", "openvino")
    with pytest.raises(UserError, match=r"needs the package openvino: .* pip install openvino"):
        prepare(experiment, accelerator, QUIET)
    assert adapt_to_device(experiment).features.compile is False


def test_it_is_for_cpus() -> None:
    with pytest.raises(UserError, match="is for the CPU"):
        openvino.check_openvino(torch.device("cuda"))


def test_what_cannot_be_converted_is_said(accelerator: Accelerator) -> None:
    def unknown(values: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(values.float())

    with pytest.raises(
        UserError, match=r"OpenVINO failed on the frozen backbone \(.+\); leave features.compile"
    ):
        openvino.convert(torch.nn.Identity(), unknown, IMAGES, bf16=False)
