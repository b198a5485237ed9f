"""Stochastic depth is a function of seed, step, layer and call; in frozen layers it is off."""

from __future__ import annotations

import pytest
import timm
import torch
from families import FAMILIES
from helpers import random_images, small_model
from torch import Tensor, nn

from runner.models.dropout import (
    KeyedBiasDropout,
    KeyedDropout,
    KeyedDropPath,
    replace_dropouts,
    set_dropout_batch,
)
from runner.utils.errors import UserError


def output(layer: KeyedDropout, samples: slice = slice(0, 12), step: int = 0) -> Tensor:
    """Of a batch of twelve."""
    layer.set_batch(step, samples, 12)
    return layer(torch.ones(samples.stop - samples.start, 3, 2, 2))


def test_whole_images_are_dropped_and_each_process_has_its_part() -> None:
    layer = KeyedDropPath(0.5, "path", 0).train()
    whole = output(layer)
    rows = whole.flatten(1)
    assert torch.equal(rows, rows[:, :1].expand(-1, 12))
    assert set(rows[:, 0].tolist()) == {0.0, 2.0}
    parts = [output(layer, slice(0, 5)), output(layer, slice(5, 12))]
    assert torch.equal(torch.cat(parts), whole)
    again = KeyedDropPath(0.5, "path", 0).train()
    assert torch.equal(output(again), whole)
    assert not torch.equal(output(again, step=1), whole)


def test_two_calls_in_a_forward_pass_draw_different_masks() -> None:
    layer = KeyedDropPath(0.5, "path", 0).train()
    first = output(layer)
    second = layer(torch.ones(12, 3, 2, 2))
    assert not torch.equal(first, second)
    assert torch.equal(output(layer), first)
    assert torch.equal(layer(torch.ones(12, 3, 2, 2)), second)


def test_biases_of_attention_are_dropped_alike_on_all_processes() -> None:
    model = nn.Sequential()
    model.rel_pos = nn.Sequential(nn.Dropout(0.5))
    model.rest = nn.Dropout(0.5)
    replace_dropouts(model, 0)
    layer = model.get_submodule("rel_pos.0")
    assert isinstance(layer, KeyedBiasDropout)
    assert type(model.rest) is KeyedDropout
    layer.train()
    values = torch.ones(13, 13, 2)
    drawn = []
    for samples in (slice(0, 5), slice(5, 12), slice(0, 12)):
        layer.set_batch(3, samples, 12)
        drawn.append(layer(values))
    assert set(drawn[0].flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])
    assert torch.equal(layer.eval()(values), values)


def test_parts_of_a_batch_compute_what_the_whole_does() -> None:
    """torchvision's ConvNeXt drops residual branches when it trains."""
    model = small_model(arch="convnext_tiny", input_size=32, trainable="last:1", dropout=0.0).train()
    layers = [each for each in model.modules() if isinstance(each, KeyedDropPath)]
    assert {each.training for each in layers} == {True, False}
    for each in layers:
        each.p = 0.5
    for key, each in model.named_parameters():
        if "layer_scale" in key:
            each.data.fill_(1.0)
    images = random_images(8, 32)

    def logits(samples: slice, step: int = 2) -> Tensor:
        set_dropout_batch(model.modules(), step, samples, 8)
        with torch.no_grad():
            return model(images[samples])

    whole = logits(slice(0, 8))
    assert torch.allclose(torch.cat([logits(slice(0, 3)), logits(slice(3, 8))]), whole, atol=1e-5)
    assert not torch.allclose(logits(slice(0, 8), 3), whole, atol=1e-3)


def rates(model: nn.Module) -> dict[str, float]:
    """The probabilities of stochastic depth by name, without those of 0."""
    named = (
        (name, getattr(each, "p", getattr(each, "drop_prob", 0.0)))
        for name, each in model.named_modules()
        if type(each).__name__ in ("KeyedDropPath", "DropPath")
    )
    return {name: probability for name, probability in named if probability}


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_the_probabilities_are_those_of_timm(arch: str) -> None:
    model = small_model(arch=f"timm/{arch}", input_size=224, trainable="all", drop_path=0.3)
    assert rates(model) == pytest.approx(rates(timm.create_model(arch, drop_path_rate=0.3)))


def test_frozen_blocks_keep_theirs() -> None:
    usual = rates(small_model(arch="convnext_tiny", input_size=32, trainable="last:2"))
    model = small_model(arch="convnext_tiny", input_size=32, trainable="last:2", drop_path=0.4)
    changed = {name: rate for name, rate in rates(model).items() if rate != usual[name]}
    assert changed == pytest.approx(
        {"features.7.1.stochastic_depth": 0.4 * 16 / 17, "features.7.2.stochastic_depth": 0.4}
    )
    layers = [each for each in model.train().modules() if isinstance(each, KeyedDropPath)]
    assert [each.p for each in layers if each.training] == pytest.approx([0.4 * 16 / 17, 0.4])


@pytest.mark.parametrize(
    ("arch", "trainable", "mending"),
    [
        ("vgg11", "all", "leave it out"),
        ("convnext_tiny", "head", "let some train, as with model.trainable=last:1"),
    ],
)
def test_without_blocks_that_can_be_skipped_it_is_refused(arch: str, trainable: str, mending: str) -> None:
    with pytest.raises(UserError, match=f"with model.trainable={trainable} {arch} has none; {mending}"):
        small_model(arch=arch, trainable=trainable, drop_path=0.1)


@pytest.mark.parametrize("head", ["classifier", "pooled"])
def test_what_a_head_does_not_use_is_left_out(head: str) -> None:
    model = FAMILIES["MobileNetV3"].model(head=head)
    has_last_convolution = any(key.startswith("conv_head.") for key in model.state_dict())
    assert has_last_convolution == (head == "classifier")
    assert ("conv_head.weight" in model.unused) == (head == "pooled")
