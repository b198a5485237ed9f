"""Mixup and CutMix: torchvision's results, the same for any division of a batch, and a plain loop's gradient."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from fits import TensorFeatures, separable_features
from helpers import Make, small_model
from torch import Tensor
from torchvision.transforms import v2

from runner.config.train_schema import TrainConfig
from runner.training.batches import MicroBatch
from runner.training.fit_data import FitData, LabeledFeatures
from runner.training.loop import fit
from runner.training.mixing import Mix, draw_mix
from runner.training.step import TrainStep

IMAGES = torch.randint(0, 256, (6, 3, 20, 30), generator=torch.Generator().manual_seed(1)).float()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def rolled(values: Tensor) -> Tensor:
    return values.roll(1, 0)


def test_mixup_is_that_of_torchvision() -> None:
    transform = v2.MixUp(num_classes=3)
    share = 0.3
    expected, labels = (
        transform.transform(each, {"labels": LABELS, "batch_size": 6, "lam": share})
        for each in (IMAGES, LABELS)
    )
    mixed, own = Mix(share).apply(IMAGES, rolled(IMAGES))
    torch.testing.assert_close(mixed, expected)
    targets = torch.nn.functional.one_hot(LABELS, 3).float()
    torch.testing.assert_close(own * targets + (1 - own) * rolled(targets), labels)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("center", [(0.0, 0.0), (0.5, 0.5), (0.99, 0.2)])
def test_cutmix_is_that_of_torchvision(share: float, center: tuple[float, float]) -> None:
    height, width = IMAGES.shape[-2:]
    row, column = int(center[0] * height), int(center[1] * width)
    half = 0.5 * math.sqrt(1 - share)
    box = (
        max(column - int(half * width), 0),
        max(row - int(half * height), 0),
        min(column + int(half * width), width),
        min(row + int(half * height), height),
    )
    lam = 1 - (box[2] - box[0]) * (box[3] - box[1]) / (height * width)
    params = {"labels": LABELS, "batch_size": 6, "box": box, "lam_adjusted": lam}
    expected = v2.CutMix(num_classes=3).transform(IMAGES, params)
    mixed, own = Mix(share, center).apply(IMAGES, rolled(IMAGES))
    assert torch.equal(mixed, expected)
    assert own == pytest.approx(lam)


def test_uint8_images_are_mixed_without_rounding() -> None:
    images = IMAGES.to(torch.uint8)
    mixed, _ = Mix(0.3).apply(images, rolled(images))
    torch.testing.assert_close(mixed, 0.3 * IMAGES + 0.7 * rolled(IMAGES))


def test_shares_are_from_the_beta_distribution() -> None:
    """Beta(a, a) has the mean 1/2 and the variance 1 / (4 (2a + 1))."""
    for alpha in (0.2, 1.0):
        draws = [draw_mix(TrainConfig(mixup=alpha), 0, step) for step in range(4000)]
        shares = np.array([mix.share for mix in draws if mix is not None])
        assert len(shares) == 4000
        assert shares.mean() == pytest.approx(0.5, abs=0.03)
        assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


def test_each_batch_has_one_of_the_two() -> None:
    draws = [draw_mix(TrainConfig(mixup=0.2, cutmix=1.0), 0, step) for step in range(1000)]
    boxes = sum(mix is not None and mix.center is not None for mix in draws)
    assert 400 < boxes < 600
    assert draw_mix(TrainConfig(mixup=0.2), 0, 5) == draw_mix(TrainConfig(mixup=0.2), 0, 5)
    assert draw_mix(TrainConfig(mixup=0.2), 0, 5) != draw_mix(TrainConfig(mixup=0.2), 1, 5)
    assert draw_mix(TrainConfig(), 0, 5) is None


@pytest.mark.parametrize("bounds", [[0, 6], [0, 2, 6], [0, 0, 3, 6, 6]])
def test_the_parts_of_a_batch_have_the_partners_of_the_whole(bounds: list[int]) -> None:
    batch = np.array([7, 3, 9, 4, 1, 8])
    parts = [MicroBatch(batch, slice(start, stop), False) for start, stop in itertools.pairwise(bounds)]
    assert np.concatenate([part.partners for part in parts]).tolist() == np.roll(batch, 1).tolist()
    for part in parts:
        assert part.indices_with_partner[1:].tolist() == part.indices.tolist()


@pytest.mark.parametrize("accumulate", ["1", "3"])
def test_a_step_has_the_gradient_of_a_plain_loop(
    accumulate: str, make: Make, accelerator: Accelerator
) -> None:
    values, labels = separable_features()
    model = small_model(dropout=0.0)
    words = ("--train.mixup", "0.4", "--train.label_smoothing", "0.1", "--train.accumulate", accumulate)
    step = TrainStep(make(*words), model, torch.tensor(labels), accelerator)
    gradients: dict[str, Tensor] = {}

    def keep(*_: object) -> bool:
        gradients.update(
            {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}
        )
        return True

    step._step_optimizer = keep  # type: ignore[method-assign]
    batch, parts = np.array([3, 14, 5, 9, 2, 6]), int(accumulate)
    for number in range(parts):
        part = MicroBatch(batch, slice(6 * number // parts, 6 * (number + 1) // parts), number == parts - 1)
        step.forward_backward(values[part.indices_with_partner], part)
    step.update()

    mix = draw_mix(step.settings, 0, 0)
    assert mix is not None
    own = values[batch]
    inputs = mix.share * own + (1 - mix.share) * own.roll(1, 0)
    one_hot = torch.nn.functional.one_hot(torch.tensor(labels)[batch], 3).float()
    target = mix.share * one_hot + (1 - mix.share) * one_hot.roll(1, 0)
    model.zero_grad()
    logits = model(inputs, start=model.split_index)
    torch.nn.functional.cross_entropy(logits, target, label_smoothing=0.1).backward()
    assert gradients
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_a_training_learns_from_mixed_batches(make: Make, accelerator: Accelerator) -> None:
    values, labels = separable_features()
    split = LabeledFeatures(lambda epoch: TensorFeatures(values), labels)
    words = ("--train.epochs", "8", "--train.batch_size", "7", "--train.mixup", "0.5", "--optim.lr", "0.003")
    history = fit(
        make(*words, "--schedule.kind", "constant"), small_model(), FitData(split, split, 8), accelerator
    )
    assert history[-1].val["top1"] == 1
    assert 0 < history[-1].train_top1 < 1


@pytest.mark.parametrize(
    "words", [{"sampling": "balanced"}, {"class_weights": True}, {"class_weights": 0.5}], ids=str
)
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_weights_of_classes_do_not_go_with_mixed_labels(name: str, words: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=rf"train\.{name} does not go with train\.{next(iter(words))}="):
        TrainConfig(**{name: 0.5, **words})  # type: ignore[arg-type]
