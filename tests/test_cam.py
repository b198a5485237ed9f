"""Class activation maps: their numbers, what they may be asked for, and that the network stays as it was."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import CLASSES, NUMBERS, QUIET, Make, small_network
from torch import Tensor, nn

from runner.data.transforms import EVALUATION_VIEW
from runner.explain import cam
from runner.explain.methods import METHODS
from runner.models.network import Architecture, Network
from runner.portable.network import VGG
from runner.training.setup import prepare
from runner.utils.errors import UserError

QUICK = tuple(cam.KINDS)
LAST = "features.19"
"""The ReLU behind vgg11's last convolution."""
BEFORE_RELU = "features.18"
"""That convolution: what it puts out is overwritten by the ReLU, which works in place."""


def images(count: int = 3, side: int = 64) -> Tensor:
    generator = torch.Generator().manual_seed(count * 1000 + side)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    return (255 * F.interpolate(coarse, size=(side, side), mode="bilinear")).to(torch.uint8)


@pytest.fixture(scope="module")
def network() -> Network:
    """vgg11 with everything trainable, in evaluation mode: no test here may change it."""
    return small_network(trainable="all", pool=2).eval()


@pytest.fixture(scope="module")
def normalised() -> Network:
    """The same with batch normalisation that has seen images."""
    network = small_network(arch="vgg11_bn", trainable="all").train()
    with torch.no_grad():
        network.run(images(8, 32), 0, len(network.features) + 1)
    return network.eval()


# What the numbers are


def plain(network: VGG, views: Tensor, targets: Sequence[int], layer: str) -> tuple[Tensor, Tensor]:
    """A layer's output and the gradients of the targets' logits there, by nothing but autograd."""
    values, kept = views, None
    with torch.enable_grad():
        for name, each in network.layers():
            values = F.relu(values) if isinstance(each, nn.ReLU) else each(values)  # never in place
            if name == layer:
                kept = values = values.detach().requires_grad_(True)
        assert kept is not None
        logits = values[torch.arange(len(targets)), torch.tensor(targets)]
        (gradients,) = torch.autograd.grad(logits.sum(), kept)
    return kept.detach(), gradients


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
    """Without what speaks against the class, each map brought to 0 … 1."""
    values = values.relu()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return ((values - low) / (high - low)).numpy()


@pytest.mark.parametrize("rule", [gradcam, hirescam, layercam])
@pytest.mark.parametrize("layer", [LAST, BEFORE_RELU, "features.0", "features.15", "features.20", "avgpool"])
def test_maps_are_those_of_plain_autograd(
    network: Network, rule: Callable[[Tensor, Tensor], Tensor], layer: str
) -> None:
    views, targets = images(), [0, 1, 2]
    wanted = scaled(rule(*plain(network, views, targets, layer)))
    assert np.isfinite(wanted).all(), "the reference tells something"
    found = cam.maps(network, cam.activations(network, views, layer), targets, layer, rule.__name__)
    assert found.dtype == np.float32
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=2e-3)


@pytest.mark.parametrize("layer", ["features.27", "features.25", "features.26", "features.5"])
def test_maps_behind_batch_normalisation_are_those_of_plain_autograd(normalised: Network, layer: str) -> None:
    views, targets = images(), [2, 0, 1]
    wanted = scaled(gradcam(*plain(normalised, views, targets, layer)))
    assert np.isfinite(wanted).all()
    found = cam.maps(normalised, cam.activations(normalised, views, layer), targets, layer)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_score_cam_is_its_definition(network: Network) -> None:
    """Wang et al. 2020: channels weighed by the logit of the image that each lets through."""
    views, targets, layer = images(2, 32), [0, 2], "features.2"
    outputs, _ = plain(network, views, targets, layer)
    masks = F.interpolate(outputs, size=(32, 32), mode="bilinear", align_corners=True)
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    masks = (masks - low) / (high - low + 1e-8)
    with torch.no_grad():
        values = network.run(views, 0, 1)
        wanted = []
        for value, mask, output, target in zip(values, masks, outputs, targets, strict=True):
            logits = network.run(value[None] * mask[:, None], 1, network.depth)[:, target]
            wanted.append((logits.softmax(0)[:, None, None] * output).sum(0))
    found = cam.score_maps(network, views, targets, layer)
    assert found.shape == (2, 32, 32)
    np.testing.assert_allclose(
        found, scaled(torch.from_numpy(cam.resize_maps(scaled(torch.stack(wanted)), (32, 32)))), atol=5e-3
    )


@pytest.mark.parametrize("method", QUICK)
def test_a_map_of_any_method_goes_from_0_to_1(network: Network, method: str) -> None:
    rows = cam.activations(network, images(), LAST)
    found = cam.maps(network, rows, [0, 1, 2], LAST, method)
    assert found.shape == (3, 4, 4)
    assert found.dtype == np.float32
    assert found.min(axis=(1, 2)) == pytest.approx([0, 0, 0])
    assert found.max(axis=(1, 2)) == pytest.approx([1, 1, 1], abs=1e-4)
    np.testing.assert_array_equal(cam.maps(network, rows, [0, 1, 2], LAST, method), found)


def test_methods_differ(network: Network) -> None:
    rows = cam.activations(network, images(), "features.14")
    found = [cam.maps(network, rows, [0, 1, 2], "features.14", method) for method in QUICK]
    for place, one in enumerate(found):
        for other in found[:place]:
            assert np.abs(one - other).max() > 0.05


@pytest.mark.parametrize("method", sorted(set(QUICK) - {"eigencam"}))
def test_maps_are_of_the_class_that_is_asked_for(network: Network, method: str) -> None:
    rows = cam.activations(network, images(1), "features.14").repeat(3, 1, 1, 1)
    one, two, three = cam.maps(network, rows, [0, 1, 2], "features.14", method)
    assert np.abs(one - two).max() > 0.02
    assert np.abs(one - three).max() > 0.02


def test_eigencam_asks_for_no_class(network: Network) -> None:
    rows = cam.activations(network, images(1), LAST)
    one, two = (cam.maps(network, rows, [target], LAST, "eigencam") for target in (0, 1))
    np.testing.assert_array_equal(one, two)


def test_eigencam_of_an_early_layer_takes_no_memory_of_pixels_by_pixels(network: Network) -> None:
    rows = cam.activations(network, images(1, 48), "features.0")
    pixels = 48 * 48
    tracemalloc.start()
    try:
        cam.maps(network, rows, [0], "features.0", "eigencam")
        assert tracemalloc.get_traced_memory()[1] < pixels * pixels * 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", QUICK)
def test_maps_do_not_depend_on_what_goes_through_beside_them(network: Network, method: str) -> None:
    views = images(cam.CHUNK + 3)
    targets = [place % 3 for place in range(len(views))]
    together = cam.explain(network, views, targets, method=method)
    alone = [
        cam.explain(network, view, [target], method=method)[0]
        for view, target in zip(views.split(1), targets, strict=True)
    ]
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-3)


def test_probabilities_do_not_depend_on_what_goes_through_beside_them(network: Network) -> None:
    views = images(cam.CHUNK + 3)
    rows = cam.activations(network, views, LAST)
    found = cam.probabilities(network, rows, LAST)
    with torch.no_grad():
        wanted = torch.cat([network(view) for view in views.split(1)]).softmax(1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    assert found.sum(1).tolist() == pytest.approx([1] * len(views))


@pytest.mark.parametrize("method", METHODS)
def test_an_explanation_has_the_size_of_the_image(network: Network, method: str) -> None:
    views = images(2, 32)
    found = cam.explain(network, views, [0, 1], "features.2" if method == "scorecam" else "", method)
    assert found.shape == (2, 32, 32)
    assert found.dtype == np.float32
    assert 0 <= found.min() <= found.max() <= 1


def test_an_explanation_is_of_the_last_convolution_unless_told_otherwise(network: Network) -> None:
    views = images(1)
    rows = cam.activations(network, views, LAST)
    wanted = F.interpolate(
        torch.from_numpy(cam.maps(network, rows, [1], LAST))[:, None], size=(64, 64), mode="bilinear"
    )
    np.testing.assert_allclose(cam.explain(network, views, [1]), wanted[:, 0].numpy(), atol=1e-6)


# Which networks


@pytest.mark.parametrize("layer", [LAST, BEFORE_RELU, "features.0"])
def test_a_network_that_trains_nothing_has_the_same_maps(network: Network, layer: str) -> None:
    frozen = small_network(trainable="all", pool=2).eval().requires_grad_(False)
    for method in QUICK[:-1]:
        np.testing.assert_array_equal(
            cam.explain(frozen, images(2), [0, 1], layer, method),
            cam.explain(network, images(2), [0, 1], layer, method),
        )


@pytest.mark.parametrize(
    "around",
    [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu", torch.bfloat16)],
    ids=["inference mode", "no gradients", "bfloat16"],
)
def test_maps_are_the_same_within(network: Network, around: Callable[[], Any]) -> None:
    views, targets = images(2), [0, 2]
    wanted = [cam.explain(network, views, targets, method=method) for method in QUICK]
    likely = cam.probabilities(network, cam.activations(network, views, LAST), LAST)
    with around():
        found = [cam.explain(network, views, targets, method=method) for method in QUICK]
        rows = cam.activations(network, views, LAST)
        assert rows.dtype == torch.float32
        assert torch.equal(cam.probabilities(network, rows, LAST), likely)
    np.testing.assert_array_equal(found, wanted)


def test_maps_in_training_are_those_of_the_network_in_evaluation(normalised: Network) -> None:
    wanted = cam.explain(normalised, images(), [0, 1, 2])
    normalised.train()
    try:
        np.testing.assert_array_equal(cam.explain(normalised, images(), [0, 1, 2]), wanted)
    finally:
        normalised.eval()


def test_the_reports_head_can_be_explained() -> None:
    network = small_network(head="report").eval()
    views, targets = images(1), [1]
    wanted = scaled(gradcam(*plain(network, views, targets, LAST)))
    found = cam.maps(network, cam.activations(network, views, LAST), targets, LAST)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_rows_stay_as_they_are(network: Network) -> None:
    rows = cam.activations(network, images(), BEFORE_RELU)
    assert (rows < 0).any(), "a ReLU would show"
    before = rows.clone()
    for method in QUICK:
        cam.maps(network, rows, [0, 1, 2], BEFORE_RELU, method)
    cam.probabilities(network, rows, BEFORE_RELU)
    assert torch.equal(rows, before)
    assert not rows.requires_grad


@pytest.mark.parametrize("trainable", ["head", "features.16"])
def test_stored_rows_have_the_maps_of_their_images(make: Make, accelerator: Any, trainable: str) -> None:
    """Of the stage behind the convolutions, or where the frozen ones end."""
    wide = ("--augment.resize", "72", "--augment.crop", "64")
    ready = prepare(make("--model.trainable", trainable, *wide), accelerator, QUIET)
    network, features = ready.network, ready.features
    layer = {"head": "features.20", "features.16": "features.15"}[trainable]
    assert network.name_of(network.stages[0][1] - 1) == layer
    features.rows("val", EVALUATION_VIEW)
    entries = ready.manifest.select("val")
    stored = features._store(0, EVALUATION_VIEW).read([f"{entry.digest}:{EVALUATION_VIEW}" for entry in entries])
    views = next(iter(ready.loader.batches(list(entries), EVALUATION_VIEW, [range(len(entries))])))
    targets = [place % 3 for place in range(len(entries))]
    computed = cam.activations(network, views, layer)
    torch.testing.assert_close(stored, computed, atol=1e-4, rtol=1e-4)
    for method in QUICK[:-1]:
        np.testing.assert_allclose(
            cam.maps(network, stored, targets, layer, method),
            cam.maps(network, computed, targets, layer, method),
            atol=2e-3,
        )


def test_rows_may_be_of_half_precision(network: Network) -> None:
    rows = cam.activations(network, images(), "features.15")
    found = cam.maps(network, rows.bfloat16(), [0, 1, 2], "features.15")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, cam.maps(network, rows, [0, 1, 2], "features.15"), atol=0.1)


# The network stays as it was


def everything(network: Network) -> dict[str, Any]:
    """What could be told apart of a network, and of the generators of random numbers."""
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        "modes": {name: module.training for name, module in network.named_modules()},
        "modules": [id(module) for module in network.modules()],
        "hooks": [len(getattr(module, kind)) for module in network.modules() for kind in hooks],
        "wanted": {name: each.requires_grad for name, each in network.named_parameters()},
        "tensors": {name: (id(each), each._version) for name, each in network.named_parameters()},
        "gradients": {
            name: None if each.grad is None else (id(each.grad), each.grad.sum().item())
            for name, each in network.named_parameters()
        },
        "values": {name: value.double().sum().item() for name, value in network.state_dict().items()},
        "torch": torch.get_rng_state().sum().item(),
        "numpy": np.random.get_state()[1].sum(),  # type: ignore[index]
        "python": random.getstate(),
        "enabled": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("trainable", ["all", "head"])
@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_the_network_stays_as_it_was(arch: str, trainable: str, training: bool) -> None:
    network = small_network(arch=arch, trainable=trainable)
    network.train(training)
    network.classifier[0].training = not training  # what a caller chose for one layer stays too
    some = next(network.classifier.parameters())
    some.grad = torch.ones_like(some)
    layer, early = cam.default_layer(network), "features.3"
    before = everything(network)

    rows = cam.activations(network, images(2, 32), layer)
    cam.probabilities(network, rows, layer)
    for method in QUICK:
        cam.maps(network, rows, [0, 1], layer, method)
    cam.explain(network, images(1, 32), [0], "features.0")
    cam.explain(network, images(1, 32), [0], "features.2", "scorecam")
    assert everything(network) == before

    with pytest.raises(IndexError):
        cam.maps(network, rows, [0, 99], layer)
    with pytest.raises(RuntimeError):
        cam.maps(network, rows, [0, 1], early)
    with pytest.raises(RuntimeError):
        cam.probabilities(network, rows, early)
    with pytest.raises(RuntimeError):
        cam.activations(network, images(1, 32)[:, :2], layer)
    with pytest.raises(IndexError):
        cam.explain(network, images(1, 32), [99], "features.2", "scorecam")
    with pytest.raises(UserError):
        cam.explain(network, images(1, 32), [0], "classifier.1")
    assert everything(network) == before


def test_learning_goes_on_after_an_explanation() -> None:
    """As if nothing had been asked: the same gradients."""
    one, two = (small_network(trainable="all", dropout=0.0).train() for _ in range(2))
    cam.explain(one, images(2, 32), [0, 1])
    gradients = []
    for network in (one, two):
        F.cross_entropy(network(images(2, 32)), torch.tensor([0, 1])).backward()
        gradients.append([each.grad for each in network.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert first is not None
        assert torch.equal(first, second)


def test_what_a_caller_froze_stays_frozen_when_an_explanation_fails() -> None:
    network = small_network(trainable="all")
    network.features[3].weight.requires_grad_(False)
    with pytest.raises(IndexError):
        cam.explain(network, images(1, 32), [99])
    assert [name for name, each in network.named_parameters() if not each.requires_grad] == [
        "features.3.weight"
    ]


def test_an_explanation_says_nothing(network: Network, capfd: pytest.CaptureFixture[str]) -> None:
    cam.explain(network, images(1, 32), [0], "features.2", "scorecam")
    cam.explain(network, images(1, 32), [0])
    assert capfd.readouterr() == ("", "")


# Layers


@pytest.mark.parametrize(
    ("arch", "layer"),
    [
        ("vgg11", "features.19"),
        ("vgg16", "features.29"),
        ("vgg11_bn", "features.27"),
        ("vgg16_bn", "features.42"),
    ],
)
def test_the_default_is_the_last_convolution_with_what_is_behind_it_but_the_pooling(
    arch: str, layer: str
) -> None:
    network = Network(Architecture(arch, "pooled", 1, 16, 0.4, "head", CLASSES, NUMBERS), 0, random=False)
    assert cam.default_layer(network) == layer
    layers = dict(network.layers())
    assert isinstance(layers[layer], nn.ReLU)
    following = layers[f"features.{int(layer.rpartition('.')[2]) + 1}"]
    assert isinstance(following, nn.MaxPool2d)


def test_every_layer_with_a_map_has_its_place(network: Network) -> None:
    for place, (name, _) in enumerate(network.layers()):
        if name.startswith("features.") or name == "avgpool":
            assert cam.layer_index(network, name) == place
            assert cam.activations(network, images(1, 32), name).dim() == 4


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ("features.91", "did you mean 'features.9'"),
        ("feature.4", "did you mean 'features.4'"),
        ("avgpol", "did you mean 'avgpool'"),
        ("", "features.0 to features.20, and avgpool"),
        ("features", "features.0 to features.20, and avgpool"),
        ("classifier.1", "'classifier.1'"),
        ("flatten", "'flatten'"),
        ("normalise", "'normalise'"),
    ],
)
def test_a_layer_without_a_map_is_refused(network: Network, layer: str, said: str) -> None:
    with pytest.raises(UserError, match="no layer") as refusal:
        cam.layer_index(network, layer)
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)
    for ask in (cam.activations, cam.probabilities):
        with pytest.raises(UserError):
            ask(network, images(1, 32), layer)
