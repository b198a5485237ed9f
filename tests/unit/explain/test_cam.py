"""Class activation maps: their values, of every method, model and mode."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from explained import QUICK, images
from helpers import QUIET, Make, small_model
from torch import Tensor, nn

from runner.cli.explain import parse
from runner.data.transforms import EVALUATION_VIEW
from runner.explain import cam
from runner.explain.methods import METHODS, Method
from runner.features.keys import FeatureKeys
from runner.models.transfer_model import TransferModel
from runner.portable.model import LayeredModel
from runner.training.setup import prepare

LAST = "features.19"
"""The ReLU after vgg11's last convolution."""
BEFORE_RELU = "features.18"
"""That convolution. The ReLU works in index and overwrites its output."""


@pytest.fixture(scope="module")
def batch_norm_model() -> TransferModel:
    """The same with batch normalization whose statistics come from images."""
    model = small_model(arch="vgg11_bn", trainable="all").train()
    with torch.no_grad():
        model.run(images(8, 32), 0, len(model.features) + 1)
    return model.eval()


# Values


def reference(
    model: LayeredModel, batch: Tensor, targets: Sequence[int], layer: str
) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradients of the targets' logits there, by plain autograd."""
    values, tapped = batch, None
    with torch.enable_grad():
        for name, each in model.named_layers():
            values = F.relu(values) if isinstance(each, nn.ReLU) else each(values)  # never in place
            if name == layer:
                tapped = values = values.detach().requires_grad_(True)
        assert tapped is not None
        logits = values[torch.arange(len(targets)), torch.tensor(targets)]
        (gradients,) = torch.autograd.grad(logits.sum(), tapped)
    return tapped.detach(), gradients


def gradcam(outputs: Tensor, gradients: Tensor) -> Tensor:
    """Selvaraju et al. 2017, equations 1 and 2."""
    return (gradients.mean((2, 3), keepdim=True) * outputs).sum(1)


def hirescam(outputs: Tensor, gradients: Tensor) -> Tensor:
    """Draelos & Carin 2020, equation 6."""
    return (gradients * outputs).sum(1)


def layercam(outputs: Tensor, gradients: Tensor) -> Tensor:
    """Jiang et al. 2021, equations 5 and 6."""
    return (gradients.relu() * outputs).sum(1)


def scaled(values: Tensor) -> np.ndarray:
    """Positive values only, each map scaled to 0 … 1."""
    values = values.relu()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return ((values - low) / (high - low)).numpy()


@pytest.mark.parametrize("rule", [gradcam, hirescam, layercam])
@pytest.mark.parametrize("layer", [LAST, BEFORE_RELU, "features.0", "features.15", "features.20", "avgpool"])
def test_maps_match_a_reference_by_plain_autograd(
    model: TransferModel, rule: Callable[[Tensor, Tensor], Tensor], layer: str
) -> None:
    batch, targets = images(), [0, 1, 2]
    expected = scaled(rule(*reference(model, batch, targets, layer)))
    assert np.isfinite(expected).all(), "the reference is not constant"
    actual = cam.layer_maps(model, cam.activations(model, batch, layer), targets, layer, rule.__name__)
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, atol=2e-3)


@pytest.mark.parametrize("layer", ["features.27", "features.25", "features.26", "features.5"])
def test_maps_with_batch_normalization_match_the_reference(
    batch_norm_model: TransferModel, layer: str
) -> None:
    batch, targets = images(), [2, 0, 1]
    expected = scaled(gradcam(*reference(batch_norm_model, batch, targets, layer)))
    assert np.isfinite(expected).all()
    actual = cam.layer_maps(batch_norm_model, cam.activations(batch_norm_model, batch, layer), targets, layer)
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_score_cam_matches_its_definition(model: TransferModel) -> None:
    """Wang et al. 2020: channels weighted by the logit of the image masked by the channel."""
    batch, targets, layer = images(2, 32), [0, 2], "features.2"
    outputs, _ = reference(model, batch, targets, layer)
    masks = F.interpolate(outputs, size=(32, 32), mode="bilinear", align_corners=True)
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = (masks - low) / (high - low + 1e-8)
    with torch.no_grad():
        values = model.run(batch, 0, 1)
        expected = []
        for value, mask, output, target in zip(values, masks, outputs, targets, strict=True):
            logits = model.run(value[None] * mask[:, None], 1, model.depth)[:, target]
            expected.append((logits.softmax(0)[:, None, None] * output).sum(0))
    actual = cam.image_maps(model, batch, targets, layer)
    assert actual.shape == (2, 32, 32)
    np.testing.assert_allclose(
        actual, scaled(torch.from_numpy(cam.resize_maps(scaled(torch.stack(expected)), (32, 32)))), atol=5e-3
    )


@pytest.mark.parametrize("method", QUICK)
def test_maps_of_every_method_range_from_0_to_1(model: TransferModel, method: str) -> None:
    outputs = cam.activations(model, images(), LAST)
    actual = cam.layer_maps(model, outputs, [0, 1, 2], LAST, method)
    assert actual.shape == (3, 4, 4)
    assert actual.dtype == np.float32
    assert actual.min(axis=(1, 2)) == pytest.approx([0, 0, 0])
    assert actual.max(axis=(1, 2)) == pytest.approx([1, 1, 1], abs=1e-4)
    np.testing.assert_array_equal(cam.layer_maps(model, outputs, [0, 1, 2], LAST, method), actual)


def test_the_methods_differ(model: TransferModel) -> None:
    outputs = cam.activations(model, images(), "features.14")
    actual = [cam.layer_maps(model, outputs, [0, 1, 2], "features.14", method) for method in QUICK]
    for index, one in enumerate(actual):
        for other in actual[:index]:
            assert np.abs(one - other).max() > 0.05


@pytest.mark.parametrize("method", sorted(set(QUICK) - {"eigencam"}))
def test_maps_depend_on_the_target_class(model: TransferModel, method: str) -> None:
    outputs = cam.activations(model, images(1), "features.14").repeat(3, 1, 1, 1)
    one, two, three = cam.layer_maps(model, outputs, [0, 1, 2], "features.14", method)
    assert np.abs(one - two).max() > 0.02
    assert np.abs(one - three).max() > 0.02


def test_eigencam_does_not_depend_on_the_target_class(model: TransferModel) -> None:
    outputs = cam.activations(model, images(1), LAST)
    one, two = (cam.layer_maps(model, outputs, [target], LAST, "eigencam") for target in (0, 1))
    np.testing.assert_array_equal(one, two)


def test_eigencam_of_an_early_layer_needs_less_memory_than_pixels_squared(model: TransferModel) -> None:
    outputs = cam.activations(model, images(1, 48), "features.0")
    pixels = 48 * 48
    tracemalloc.start()
    try:
        cam.layer_maps(model, outputs, [0], "features.0", "eigencam")
        assert tracemalloc.get_traced_memory()[1] < pixels * pixels * 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", QUICK)
def test_maps_do_not_depend_on_the_other_images_of_the_batch(model: TransferModel, method: str) -> None:
    batch = images(cam.BATCH_SIZE + 3)
    targets = [index % 3 for index in range(len(batch))]
    together = cam.explain(model, batch, targets, method=method)
    alone = [
        cam.explain(model, view, [target], method=method)[0]
        for view, target in zip(batch.split(1), targets, strict=True)
    ]
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-3)


def test_probabilities_do_not_depend_on_the_other_images_of_the_batch(model: TransferModel) -> None:
    batch = images(cam.BATCH_SIZE + 3)
    outputs = cam.activations(model, batch, LAST)
    actual = cam.probabilities(model, outputs, LAST)
    with torch.no_grad():
        expected = torch.cat([model(view) for view in batch.split(1)]).softmax(1)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
    assert actual.sum(1).tolist() == pytest.approx([1] * len(batch))


@pytest.mark.parametrize("method", METHODS)
def test_an_explanation_has_the_size_of_the_image(model: TransferModel, method: str) -> None:
    batch = images(2, 32)
    actual = cam.explain(model, batch, [0, 1], "features.2" if method == "scorecam" else "", method)
    assert actual.shape == (2, 32, 32)
    assert actual.dtype == np.float32
    assert 0 <= actual.min() <= actual.max() <= 1


def test_the_default_layer_of_an_explanation_is_the_last_convolution(model: TransferModel) -> None:
    batch = images(1)
    outputs = cam.activations(model, batch, LAST)
    expected = F.interpolate(
        torch.from_numpy(cam.layer_maps(model, outputs, [1], LAST))[:, None], size=(64, 64), mode="bilinear"
    )
    np.testing.assert_allclose(cam.explain(model, batch, [1]), expected[:, 0].numpy(), atol=1e-6)


def test_a_new_method_is_one_entry_of_the_table(
    model: TransferModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "xgradcam", Method("XGrad-CAM", "pytorch_grad_cam:XGradCAM"))
    assert cam.explain(model, images(2), [0, 1], method="xgradcam").shape == (2, 64, 64)
    assert parse(["x.png", "--method", "xgradcam"]).method == "xgradcam"


# Models and modes


@pytest.mark.parametrize("layer", [LAST, BEFORE_RELU, "features.0"])
def test_a_frozen_model_has_the_same_maps(model: TransferModel, layer: str) -> None:
    frozen = small_model(trainable="all", pool=2).eval().requires_grad_(False)
    for method in QUICK[:-1]:
        np.testing.assert_array_equal(
            cam.explain(frozen, images(2), [0, 1], layer, method),
            cam.explain(model, images(2), [0, 1], layer, method),
        )


@pytest.mark.parametrize(
    "around",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["inference mode", "no gradients", "bfloat16"],
)
def test_maps_are_the_same_within_any_torch_context(model: TransferModel, around: Callable[[], Any]) -> None:
    batch, targets = images(2), [0, 2]
    expected = [cam.explain(model, batch, targets, method=method) for method in QUICK]
    probabilities = cam.probabilities(model, cam.activations(model, batch, LAST), LAST)
    with around():
        actual = [cam.explain(model, batch, targets, method=method) for method in QUICK]
        outputs = cam.activations(model, batch, LAST)
        assert outputs.dtype == torch.float32
        assert torch.equal(cam.probabilities(model, outputs, LAST), probabilities)
    np.testing.assert_array_equal(actual, expected)


def test_maps_in_training_mode_equal_those_in_evaluation_mode(batch_norm_model: TransferModel) -> None:
    expected = cam.explain(batch_norm_model, images(), [0, 1, 2])
    batch_norm_model.train()
    try:
        np.testing.assert_array_equal(cam.explain(batch_norm_model, images(), [0, 1, 2]), expected)
    finally:
        batch_norm_model.eval()


def test_a_classifier_head_can_be_explained() -> None:
    model = small_model(head="classifier").eval()
    batch, targets = images(1), [1]
    expected = scaled(gradcam(*reference(model, batch, targets, LAST)))
    actual = cam.layer_maps(model, cam.activations(model, batch, LAST), targets, LAST)
    np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_the_given_outputs_are_not_modified(model: TransferModel) -> None:
    outputs = cam.activations(model, images(), BEFORE_RELU)
    assert (outputs < 0).any(), "an in-place ReLU would change them"
    before = outputs.clone()
    for method in QUICK:
        cam.layer_maps(model, outputs, [0, 1, 2], BEFORE_RELU, method)
    cam.probabilities(model, outputs, BEFORE_RELU)
    assert torch.equal(outputs, before)
    assert not outputs.requires_grad


@pytest.mark.parametrize("trainable", ["head", "features.16"])
def test_cached_features_have_the_maps_of_their_images(make: Make, accelerator: Any, trainable: str) -> None:
    """The cached features are the output of the convolutions, or of the last frozen one."""
    wide = ("--augment.resize", "72", "--augment.crop", "64")
    ready = prepare(make("--model.trainable", trainable, *wide), accelerator, QUIET)
    model, features = ready.model, ready.features
    layer = {"head": "features.20", "features.16": "features.15"}[trainable]
    assert model.layer_names[model.frozen_stages[0].stop - 1] == layer
    features.get("val", EVALUATION_VIEW)
    entries = ready.manifest.select("val")
    stored = features._stages.open(0, EVALUATION_VIEW).read(FeatureKeys(entries.digests, EVALUATION_VIEW))
    batch = next(iter(ready.loader.batches(list(entries), EVALUATION_VIEW, [range(len(entries))])))
    targets = [index % 3 for index in range(len(entries))]
    computed = cam.activations(model, batch, layer)
    torch.testing.assert_close(stored, computed, atol=1e-4, rtol=1e-4)
    for method in QUICK[:-1]:
        np.testing.assert_allclose(
            cam.layer_maps(model, stored, targets, layer, method),
            cam.layer_maps(model, computed, targets, layer, method),
            atol=2e-3,
        )


def test_outputs_may_have_half_precision(model: TransferModel) -> None:
    outputs = cam.activations(model, images(), "features.15")
    actual = cam.layer_maps(model, outputs.bfloat16(), [0, 1, 2], "features.15")
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, cam.layer_maps(model, outputs, [0, 1, 2], "features.15"), atol=0.1)
