"""Faithfulness of maps: they find objects whose boxes are known, and removing what they mark changes the prediction."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import small_model
from hypothesis import assume, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from objects import OBJECTS, SIDE, SIZE, draw_object
from PIL import Image, ImageDraw
from torch import Tensor

from runner.explain import cam, faithfulness
from runner.explain.faithfulness import Box, Faithfulness
from runner.models.transfer_model import TransferModel
from runner.portable.transform import evaluation_transform

TRAINED, TESTED = 24, 8
"""Pictures per class."""


@dataclass
class Trained:
    """A model that has learned the objects, and test images with their classes and boxes."""

    model: TransferModel
    images: Tensor
    labels: list[int]
    digests: list[str]
    boxes: list[Box]


def object_images(numbers: range) -> tuple[Tensor, list[int], list[Box]]:
    """Pictures of each class as a tensor (n × 3 × SIDE × SIDE, uint8), with class indices and boxes."""
    images, labels, boxes = [], [], []
    for index, label in enumerate(sorted(OBJECTS)):
        for number in numbers:
            image, box = draw_object(label, number)
            images.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
            labels.append(index)
            boxes.append((float(box[0]), float(box[1]), float(box[2]), float(box[3])))
    return torch.stack(images), labels, boxes


@pytest.fixture(scope="module")
def trained() -> Trained:
    """vgg11 at random weights, of which the last two convolutions and the head are trained."""
    model = small_model(trainable="features.16", width=32, dropout=0.0)
    images, labels, _ = object_images(range(TRAINED))
    with torch.no_grad():
        frozen = model.eval().run(images, 0, model.split_index).clone()
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], 5e-4)
    order = torch.Generator().manual_seed(0)
    for _ in range(12):
        for batch in torch.randperm(len(labels), generator=order).split(8):
            loss = F.cross_entropy(model(frozen[batch], start=model.split_index), torch.tensor(labels)[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    tested, test_labels, boxes = object_images(range(TRAINED, TRAINED + TESTED))
    return Trained(model, tested, test_labels, [f"image {index}" for index in range(len(test_labels))], boxes)


def closeness(box: Box) -> np.ndarray:
    """A map (1 × h × w) that is largest in a box and falls with the distance to its center; no two pixels are equal."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    x, y = (box[0] + box[2] - 1) / 2, (box[1] + box[3] - 1) / 2
    distance = np.maximum(abs(columns - x), abs(rows - y)) + 1e-3 * (columns + rows / SIDE)
    return (1 - distance / distance.max())[None].astype(np.float32)


# An object whose box is known


@pytest.mark.slow
def test_the_objects_are_learned(trained: Trained) -> None:
    with torch.no_grad():
        predicted = trained.model(trained.images).argmax(1)
    assert float((predicted == torch.tensor(trained.labels)).float().mean()) >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "method"),
    [("", "gradcam"), ("features.14", "gradcam"), ("", "gradcam++"), ("features.14", "gradcam++")],
)
def test_a_map_finds_the_object(trained: Trained, layer: str, method: str) -> None:
    maps = cam.explain(trained.model, trained.images, trained.labels, layer, method)
    chance = SIZE**2 / SIDE**2
    generator = np.random.default_rng(0)
    noise = np.concatenate(
        [
            cam.resize_maps(generator.random((len(maps), 4, 4), dtype=np.float32), (SIDE, SIDE))
            for _ in range(20)
        ]
    )
    random_score = faithfulness.pointing_game(noise, trained.boxes * 20)
    random_energy = faithfulness.energy_in_boxes(noise, trained.boxes * 20)
    assert random_score == pytest.approx(chance, abs=0.08)
    assert faithfulness.pointing_game(maps, trained.boxes) > max(0.5, 3 * random_score)
    assert faithfulness.energy_in_boxes(maps, trained.boxes) > 1.25 * random_energy


@pytest.mark.slow
def test_a_map_of_another_image_does_not_find_the_object(trained: Trained) -> None:
    maps = cam.explain(trained.model, trained.images, trained.labels)
    shifted = np.roll(maps, len(maps) // 3, axis=0)
    found = faithfulness.pointing_game(maps, trained.boxes)
    assert faithfulness.pointing_game(shifted, trained.boxes) < found / 2


# ROAD


@pytest.mark.slow
def test_maps_of_the_last_convolution_are_significantly_better_than_random_maps(trained: Trained) -> None:
    measured = faithfulness.measure(trained.model, trained.images[::3], trained.digests[::3])
    assert measured.difference.low > 0
    assert measured.win_rate > 0.8
    assert abs(measured.random) < measured.score / 2


@pytest.mark.slow
def test_road_distinguishes_the_true_map_from_others(trained: Trained) -> None:
    true: list[float] = []
    unrelated: list[float] = []
    inverted: list[float] = []
    generator = np.random.default_rng(0)
    for index in range(0, 3 * TESTED, 4):
        image, target = trained.images[index : index + 1], trained.labels[index]
        correct = closeness(trained.boxes[index])
        noise = cam.resize_maps(generator.random((1, 4, 4), dtype=np.float32), (SIDE, SIDE))
        for scores, shown in ((true, correct), (unrelated, noise), (inverted, 1 - correct)):
            scores.append(faithfulness.road(trained.model, image, target, shown, str(index)))
    assert np.mean(true) > np.mean(unrelated) + 0.1
    assert np.mean(inverted) < -0.1
    assert all(-1 <= score <= 1 for score in (*true, *unrelated, *inverted))


@pytest.mark.slow
def test_road_is_antisymmetric(trained: Trained) -> None:
    """The pixels that are removed first for a map are removed last for the inverted map."""
    image, target, shown = trained.images[:1], trained.labels[0], closeness(trained.boxes[0])
    one = faithfulness.road(trained.model, image, target, shown, "x")
    other = faithfulness.road(trained.model, image, target, 1 - shown, "x")
    assert one == pytest.approx(-other, abs=0.05)


@pytest.mark.slow
def test_road_of_a_constant_map_is_zero(trained: Trained) -> None:
    image, target = trained.images[:1], trained.labels[0]
    for flat in (np.zeros((1, SIDE, SIDE), np.float32), np.ones((1, SIDE, SIDE), np.float32)):
        assert faithfulness.road(trained.model, image, target, flat, "x") == pytest.approx(0, abs=0.05)


def removed_shares(trained: Trained, shown: np.ndarray) -> list[float]:
    """The share of pixels that is replaced in each of the images that `road` runs the model on."""
    image, inputs = trained.images[:1], []
    whole = trained.model.run(image, 0, 1)
    first = trained.model.features[0]
    handle = first.register_forward_pre_hook(lambda _, values: inputs.append(values[0].clone()))
    try:
        faithfulness.road(trained.model, image, 0, shown, "x")
    finally:
        handle.remove()
    return [round(float((values != whole).any(1).float().mean()), 2) for values in inputs]


@pytest.mark.slow
def test_road_removes_three_tenths_and_one_tenth_of_the_pixels(trained: Trained) -> None:
    assert removed_shares(trained, closeness(trained.boxes[0])) == [0.3, 0.3, 0.1, 0.1]


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["all but a box", "all but one cell of a layer", "everywhere"])
def test_road_removes_no_more_for_a_map_that_is_mostly_zero(trained: Trained, zero: str) -> None:
    shown = np.zeros((1, SIDE, SIDE), np.float32)
    if zero == "all but a box":
        shown[:, 8:24, 8:24] = 1
    elif zero != "everywhere":
        cells = np.zeros((1, 8, 8), np.float32)
        cells[0, 2, 2] = 1
        shown = cam.resize_maps(cells, (SIDE, SIDE))
    assert removed_shares(trained, shown) == [0.3, 0.3, 0.1, 0.1]


def state(model: Any) -> tuple[Any, ...]:
    """The parts of a model and of the random generators that measuring must not change."""
    return (
        [module.training for module in model.modules()],
        [each.requires_grad for each in model.parameters()],
        [None if each.grad is None else each.grad.double().sum().item() for each in model.parameters()],
        [value.double().sum().item() for value in model.state_dict().values()],
        [len(module._forward_hooks) for module in model.modules()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        random.getstate(),
    )


@pytest.mark.slow
def test_measuring_is_repeatable_and_changes_nothing(trained: Trained) -> None:
    trained.model.train()
    try:
        before = state(trained.model)
        one = faithfulness.measure(trained.model, trained.images[:3], trained.digests[:3])
        assert state(trained.model) == before
    finally:
        trained.model.eval()
    torch.manual_seed(3)
    advanced: list[int] = []
    two = faithfulness.measure(
        trained.model, trained.images[:3], trained.digests[:3], advance=advanced.append
    )
    assert two == one
    assert advanced == [1, 1, 1]
    assert two.images == 3
    assert two.difference.mean == pytest.approx(two.score - two.random)
    assert two.difference.low <= two.difference.mean <= two.difference.high
    assert two.win_rate in (0, 1 / 3, 2 / 3, 1)


@pytest.mark.slow
def test_the_score_of_an_image_does_not_depend_on_the_others(trained: Trained) -> None:
    def measured(*indices: int) -> Faithfulness:
        digests = [trained.digests[index] for index in indices]
        return faithfulness.measure(trained.model, trained.images[list(indices)], digests)

    assert measured(0, 1).score == pytest.approx(measured(1, 0).score, abs=1e-6)
    assert measured(0, 1).random == pytest.approx(measured(1, 0).random, abs=1e-6)


@pytest.mark.slow
def test_the_names_of_the_metrics(trained: Trained) -> None:
    measured = faithfulness.measure(
        trained.model, trained.images[:2], trained.digests[:2], "layercam", "features.14"
    )
    assert list(measured.metrics()) == ["road", "road_random", "road_gain", "road_gain_low", "road_gain_high"]
    assert all(np.isfinite(value) for value in measured.metrics().values())


@pytest.mark.slow
def test_a_failure_leaves_the_model_unchanged(trained: Trained) -> None:
    before = state(trained.model)
    with pytest.raises((IndexError, RuntimeError)):
        faithfulness.road(trained.model, trained.images[:1], 99, closeness(trained.boxes[0]), "x")
    assert state(trained.model) == before


def test_a_model_without_trainable_layers_can_be_measured() -> None:
    model = small_model().requires_grad_(False)
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        assert faithfulness.measure(model, images, ["a", "b"]).images == 2


# Pointing scores, computed by hand


def test_the_pointing_game_counts_maxima_in_boxes() -> None:
    maps = np.zeros((2, 4, 6), np.float32)
    maps[0, 1, 4] = maps[1, 3, 0] = 1  # row, column
    assert faithfulness.pointing_game(maps, [(4, 1, 5, 2), (0, 3, 1, 4)]) == 1
    assert faithfulness.pointing_game(maps, [(1, 4, 2, 5), (0, 3, 1, 4)]) == 0.5, "columns come first"
    assert faithfulness.pointing_game(maps, [(2, 0, 4, 4), (1, 0, 6, 4)]) == 0, "the right edge is exclusive"
    assert faithfulness.pointing_game(maps[:1], [(3.2, 0.5, 4.9, 1.5)]) == 1


def test_the_energy_is_the_share_of_the_map_in_the_box() -> None:
    maps = np.array([[[1, 2], [3, 4]], [[0, 1], [0, 0]]], np.float32)
    assert faithfulness.energy_in_boxes(maps, [(0, 0, 1, 2), (0, 0, 2, 2)]) == pytest.approx((0.4 + 1) / 2)
    assert faithfulness.energy_in_boxes(maps[:1], [(1, 1, 2, 2)]) == pytest.approx(0.4)
    assert faithfulness.energy_in_boxes(maps[:1] * 0, [(0, 0, 2, 2)]) == 0


# Boxes after resizing and cropping

SIDES = st.integers(40, 240)


@limits(deadline=None, max_examples=120)
@given(st.tuples(SIDES, SIDES), st.integers(32, 128), st.floats(0.5, 1), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_box_follows_its_object_through_the_transform(
    size: tuple[int, int], resize: int, share: float, corners: tuple[float, float, float, float]
) -> None:
    width, height = size
    crop = max(32, round(resize * share))
    assume(crop <= resize)
    left, right = sorted(round(each * width) for each in corners[:2])
    top, bottom = sorted(round(each * height) for each in corners[2:])
    scale = resize / min(size)
    assume(min(right - left, bottom - top) * scale >= 6)
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((left, top, right - 1, bottom - 1), fill="white")
    transformed = evaluation_transform(resize, crop, "bilinear")(image)
    white = (transformed[0] > 127).nonzero()
    box = faithfulness.box_in_crop((left, top, right, bottom), width, height, resize, crop)
    if box is None:
        assert not len(white) or min(np.ptp(white.numpy(), axis=0)) <= 1.5
        return
    if not len(white):
        assert min(box[2] - box[0], box[3] - box[1]) <= 1.5
        return
    (first_row, first_column), (last_row, last_column) = white.amin(0).tolist(), white.amax(0).tolist()
    assert box == pytest.approx((first_column, first_row, last_column + 1, last_row + 1), abs=1.5)
    assert all(0 <= each <= crop for each in box)


def test_the_box_of_a_whole_image_is_the_whole_crop() -> None:
    assert faithfulness.box_in_crop((0, 0, 300, 200), 300, 200, 64, 64) == (0, 0, 64, 64)
    assert faithfulness.box_in_crop((-9, -9, 999, 999), 200, 300, 256, 224) == (0, 0, 224, 224)


def test_a_box_is_only_scaled_if_nothing_is_cut_off() -> None:
    assert faithfulness.box_in_crop((10, 20, 30, 40), 100, 100, 50, 50) == (5, 10, 15, 20)
    assert faithfulness.box_in_crop((10, 20, 30, 40), 100, 100, 200, 200) == (20, 40, 60, 80)


@pytest.mark.parametrize(
    "box", [(0, 0, 10, 10), (90, 90, 100, 100), (40, 40, 40, 60), (60, 40, 40, 60), (200, 0, 300, 90)]
)
def test_a_box_outside_of_the_crop_or_without_area_is_none(box: Box) -> None:
    assert faithfulness.box_in_crop(box, 100, 100, 100, 60) is None


@pytest.mark.parametrize("corner", range(4))
def test_a_box_with_nan_is_none(corner: int) -> None:
    box = [10.0, 10.0, 50.0, 50.0]
    box[corner] = float("nan")
    assert faithfulness.box_in_crop(tuple(box), 100, 100, 64, 64) is None  # type: ignore[arg-type]
