"""Does a map show what matters? Where an object's place is known it has to be found, and taking it away has to tell."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from helpers import QUIET, small_network
from hypothesis import assume, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

from runner.config.parser import parse
from runner.data.transforms import EVALUATION_VIEW
from runner.explain import cam, faithfulness
from runner.explain.faithfulness import Box, Faithfulness
from runner.portable.transform import evaluation_transform
from runner.training import run
from runner.training.setup import Setup, prepare

OBJECTS = {"coin": (230, 200, 40), "leaf": (40, 190, 60), "rose": (220, 40, 90)}
SIDE, SIZE, EACH = 64, 24, 32
"""Pixels of a picture and of the object in it; pictures of each class."""


def draw_object(label: str, number: int) -> tuple[Image.Image, tuple[int, int, int, int]]:
    """A square of its class's colour somewhere in gray noise, and its box."""
    generator = np.random.default_rng([sorted(OBJECTS).index(label), number])
    picture = generator.normal(110, 30, (SIDE, SIDE, 3))
    left, top = (int(each) for each in generator.integers(0, SIDE - SIZE + 1, 2))
    colour = np.array(OBJECTS[label])
    picture[top : top + SIZE, left : left + SIZE] = colour + generator.normal(0, 20, (SIZE, SIZE, 3))
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return image, (left, top, left + SIZE, top + SIZE)


def write_objects(root: Path) -> dict[str, tuple[int, int, int, int]]:
    """Pictures of objects in class folders; the box of each by its path."""
    boxes = {}
    for label in OBJECTS:
        (root / label).mkdir(parents=True)
        for number in range(EACH):
            image, box = draw_object(label, number)
            image.save(root / label / f"{number:02}.png")
            boxes[f"{label}/{number:02}.png"] = box
    return boxes


def objects_words(root: Path, place: Path) -> list[str]:
    """An experiment that learns the objects in seconds: vgg11, of which the last two convolutions train."""
    return [
        *("--name", "objects", "--data.kind", "folder", "--data.root", str(root)),
        *("--cache", str(place / "cache"), "--tracking.root", str(place / "mlruns")),
        *("--tracking.system_metrics", "false", "--tracking.model", "false", "--tracking.gallery", "2"),
        *("--model.arch", "vgg11", "--model.trainable", "features.16", "--model.pool", "1"),
        *("--model.width", "32", "--model.dropout", "0", "--augment.views", "clean"),
        *("--augment.resize", str(SIDE), "--augment.crop", str(SIDE), "--schedule.kind", "constant"),
        *("--optim.name", "adam", "--optim.lr", "0.0005", "--train.epochs", "10", "--train.batch_size", "8"),
        *("--train.precision", "no", "--features.batch_size", "8", "--features.compile", "false"),
    ]


class Learned:
    """A network that knows the objects, and test images with their boxes."""

    def __init__(self, ready: Setup, boxes: dict[str, tuple[int, int, int, int]], top1: float) -> None:
        entries = list(ready.manifest.select("test"))
        self.network = ready.network
        self.top1 = top1
        self.views: Tensor = next(iter(ready.loader.batches(entries, EVALUATION_VIEW, [range(len(entries))])))
        self.labels = ready.manifest.labels("test")
        self.digests = [entry.digest for entry in entries]
        self.boxes: list[Box] = [boxes[entry.path] for entry in entries]


@pytest.fixture(scope="module")
def learned(accelerator: Accelerator, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    place = tmp_path_factory.mktemp("objects")
    boxes = write_objects(place / "pictures")
    experiment = parse(objects_words(place / "pictures", place))[0]
    ready = prepare(experiment, accelerator, QUIET)
    history = run.learn(ready, accelerator, lambda _: None, QUIET)
    ready.network.eval()
    return Learned(ready, boxes, history[-1].val.top1)


def closeness(box: Box) -> np.ndarray:
    """A map (1 × h × w) that is greatest in a box and falls with the distance to its middle; no two pixels tie."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE]
    across, down = (box[0] + box[2] - 1) / 2, (box[1] + box[3] - 1) / 2
    far = np.maximum(abs(columns - across), abs(rows - down)) + 1e-3 * (columns + rows / SIDE)
    return (1 - far / far.max())[None].astype(np.float32)


# An object whose place is known


def test_the_objects_are_learned(learned: Learned) -> None:
    assert learned.top1 >= 0.9


@pytest.mark.parametrize(
    ("layer", "method"),
    [("", "gradcam"), ("features.14", "gradcam"), ("", "gradcam++"), ("features.14", "gradcam++")],
)
def test_a_map_finds_the_object(learned: Learned, layer: str, method: str) -> None:
    found = cam.explain(learned.network, learned.views, learned.labels, layer, method)
    chance = SIZE**2 / SIDE**2
    generator = np.random.default_rng(0)
    noise = np.concatenate(
        [
            cam.resize_maps(generator.random((len(found), 4, 4), dtype=np.float32), (SIDE, SIDE))
            for _ in range(20)
        ]
    )
    by_chance = faithfulness.pointing_game(noise, learned.boxes * 20)
    assert by_chance == pytest.approx(chance, abs=0.08)
    assert faithfulness.pointing_game(found, learned.boxes) > max(0.5, 3 * by_chance)
    assert faithfulness.energy_in_boxes(found, learned.boxes) > 1.25 * faithfulness.energy_in_boxes(noise, learned.boxes * 20)


def test_a_map_of_another_image_does_not_find_the_object(learned: Learned) -> None:
    found = cam.explain(learned.network, learned.views, learned.labels)
    others = np.roll(found, len(found) // 3, axis=0)
    assert faithfulness.pointing_game(others, learned.boxes) < faithfulness.pointing_game(found, learned.boxes) / 2


# ROAD


def test_maps_of_the_last_convolution_are_better_than_random_ones_for_certain(learned: Learned) -> None:
    measured = faithfulness.measure(learned.network, learned.views[:8], learned.digests[:8])
    assert measured.difference.low > 0
    assert measured.win_rate > 0.8
    assert abs(measured.random) < measured.score / 2


def test_road_tells_the_true_map_from_others(learned: Learned) -> None:
    true: list[float] = []
    random_: list[float] = []
    inverted: list[float] = []
    generator = np.random.default_rng(0)
    for place in range(6):
        view, target = learned.views[place : place + 1], learned.labels[place]
        around = closeness(learned.boxes[place])
        noise = cam.resize_maps(generator.random((1, 4, 4), dtype=np.float32), (SIDE, SIDE))
        for scores, found in ((true, around), (random_, noise), (inverted, 1 - around)):
            scores.append(faithfulness.road(learned.network, view, target, found, str(place)))
    assert np.mean(true) > np.mean(random_) + 0.15
    assert np.mean(inverted) < -0.15
    assert all(-1 <= each <= 1 for each in (*true, *random_, *inverted))


def test_road_is_antisymmetric(learned: Learned) -> None:
    """What is taken away first from a map is taken away last from its opposite."""
    view, target, around = learned.views[:1], learned.labels[0], closeness(learned.boxes[0])
    one = faithfulness.road(learned.network, view, target, around, "x")
    other = faithfulness.road(learned.network, view, target, 1 - around, "x")
    assert one == pytest.approx(-other, abs=0.05)


def test_road_of_a_map_that_says_nothing_is_none(learned: Learned) -> None:
    view, target = learned.views[:1], learned.labels[0]
    for flat in (np.zeros((1, SIDE, SIDE), np.float32), np.ones((1, SIDE, SIDE), np.float32)):
        assert faithfulness.road(learned.network, view, target, flat, "x") == pytest.approx(0, abs=0.05)


def taken_away(learned: Learned, found: np.ndarray) -> list[float]:
    """The share of the pixels that each picture lacks of which `road` asks the network."""
    view, shown = learned.views[:1], []
    whole = learned.network.run(view, 0, 1)
    first = learned.network.features[0]
    handle = first.register_forward_pre_hook(lambda _, given: shown.append(given[0].clone()))
    try:
        faithfulness.road(learned.network, view, 0, found, "x")
    finally:
        handle.remove()
    return [round(float((each != whole).any(1).float().mean()), 2) for each in shown]


def test_road_takes_away_three_tenths_and_one_of_the_image(learned: Learned) -> None:
    assert taken_away(learned, closeness(learned.boxes[0])) == [0.3, 0.3, 0.1, 0.1]


@pytest.mark.parametrize("zero", ["all but a box", "all but what one cell of a layer answers", "all"])
def test_road_takes_no_more_away_of_a_map_that_is_mostly_zero(learned: Learned, zero: str) -> None:
    found = np.zeros((1, SIDE, SIDE), np.float32)
    if zero == "all but a box":
        found[:, 8:24, 8:24] = 1
    elif zero != "all":
        cells = np.zeros((1, 8, 8), np.float32)
        cells[0, 2, 2] = 1
        found = cam.resize_maps(cells, (SIDE, SIDE))
    assert taken_away(learned, found) == [0.3, 0.3, 0.1, 0.1]


def state(network: Any) -> tuple[Any, ...]:
    return (
        [module.training for module in network.modules()],
        [each.requires_grad for each in network.parameters()],
        [each.grad is None for each in network.parameters()],
        [value.double().sum().item() for value in network.state_dict().values()],
        [len(module._forward_hooks) for module in network.modules()],
        torch.get_rng_state().tolist(),
        np.random.get_state()[1].tolist(),  # type: ignore[index]
        random.getstate(),
    )


def test_measuring_repeats_itself_and_leaves_everything_as_it_was(learned: Learned) -> None:
    learned.network.train()
    try:
        before = state(learned.network)
        one = faithfulness.measure(learned.network, learned.views[:3], learned.digests[:3])
        assert state(learned.network) == before
    finally:
        learned.network.eval()
    torch.manual_seed(3)
    advanced: list[int] = []
    two = faithfulness.measure(
        learned.network, learned.views[:3], learned.digests[:3], advance=advanced.append
    )
    assert two == one
    assert advanced == [1, 1, 1]
    assert two.images == 3
    assert two.difference.mean == pytest.approx(two.score - two.random)
    assert two.difference.low <= two.difference.mean <= two.difference.high
    assert two.win_rate in (0, 1 / 3, 2 / 3, 1)


def test_an_image_is_measured_alike_whatever_is_measured_with_it(learned: Learned) -> None:
    def measured(*places: int) -> Faithfulness:
        digests = [learned.digests[place] for place in places]
        return faithfulness.measure(learned.network, learned.views[list(places)], digests)

    assert measured(0, 1).score == pytest.approx(measured(1, 0).score, abs=1e-6)
    assert measured(0, 1).random == pytest.approx(measured(1, 0).random, abs=1e-6)


def test_measures_bear_the_names_that_the_records_use(learned: Learned) -> None:
    measured = faithfulness.measure(
        learned.network, learned.views[:2], learned.digests[:2], "layercam", "features.14"
    )
    assert list(measured.metrics()) == ["road", "road_random", "road_gain", "road_gain_low", "road_gain_high"]
    assert all(np.isfinite(value) for value in measured.metrics().values())


def test_a_failure_leaves_the_network_as_it_was(learned: Learned) -> None:
    before = state(learned.network)
    with pytest.raises((IndexError, RuntimeError)):
        faithfulness.road(learned.network, learned.views[:1], 99, closeness(learned.boxes[0]), "x")
    assert state(learned.network) == before


def test_a_network_that_trains_nothing_is_measured_too() -> None:
    network = small_network().requires_grad_(False)
    views = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    with torch.inference_mode():
        assert faithfulness.measure(network, views, ["a", "b"]).images == 2


# Pointing, by hand


def test_a_map_points_where_its_maximum_is() -> None:
    found = np.zeros((2, 4, 6), np.float32)
    found[0, 1, 4] = found[1, 3, 0] = 1  # row, column
    assert faithfulness.pointing_game(found, [(4, 1, 5, 2), (0, 3, 1, 4)]) == 1
    assert faithfulness.pointing_game(found, [(1, 4, 2, 5), (0, 3, 1, 4)]) == 0.5, "columns first"
    assert faithfulness.pointing_game(found, [(2, 0, 4, 4), (1, 0, 6, 4)]) == 0, "the right edge lies outside"
    assert faithfulness.pointing_game(found[:1], [(3.2, 0.5, 4.9, 1.5)]) == 1


def test_energy_is_the_share_of_the_map_in_the_box() -> None:
    found = np.array([[[1, 2], [3, 4]], [[0, 1], [0, 0]]], np.float32)
    assert faithfulness.energy_in_boxes(found, [(0, 0, 1, 2), (0, 0, 2, 2)]) == pytest.approx((0.4 + 1) / 2)
    assert faithfulness.energy_in_boxes(found[:1], [(1, 1, 2, 2)]) == pytest.approx(0.4)
    assert faithfulness.energy_in_boxes(found[:1] * 0, [(0, 0, 2, 2)]) == 0


# Boxes in views

SIDES = st.integers(40, 240)


@limits(deadline=None, max_examples=120)
@given(st.tuples(SIDES, SIDES), st.integers(32, 128), st.floats(0.5, 1), st.tuples(*[st.floats(0, 1)] * 4))
def test_a_box_lies_in_the_view_where_its_object_does(
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
    view = evaluation_transform(resize, crop, "bilinear")(image)
    shown = (view[0] > 127).nonzero()
    box = faithfulness.box_in_crop((left, top, right, bottom), width, height, resize, crop)
    if box is None:
        assert not len(shown) or min(np.ptp(shown.numpy(), axis=0)) <= 1.5
        return
    if not len(shown):
        assert min(box[2] - box[0], box[3] - box[1]) <= 1.5
        return
    (first_row, first_column), (last_row, last_column) = shown.amin(0).tolist(), shown.amax(0).tolist()
    assert box == pytest.approx((first_column, first_row, last_column + 1, last_row + 1), abs=1.5)
    assert all(0 <= each <= crop for each in box)


def test_an_images_whole_box_is_the_whole_view() -> None:
    assert faithfulness.box_in_crop((0, 0, 300, 200), 300, 200, 64, 64) == (0, 0, 64, 64)
    assert faithfulness.box_in_crop((-9, -9, 999, 999), 200, 300, 256, 224) == (0, 0, 224, 224)


def test_where_nothing_is_cut_off_a_box_is_scaled() -> None:
    assert faithfulness.box_in_crop((10, 20, 30, 40), 100, 100, 50, 50) == (5, 10, 15, 20)
    assert faithfulness.box_in_crop((10, 20, 30, 40), 100, 100, 200, 200) == (20, 40, 60, 80)


@pytest.mark.parametrize(
    "box", [(0, 0, 10, 10), (90, 90, 100, 100), (40, 40, 40, 60), (60, 40, 40, 60), (200, 0, 300, 90)]
)
def test_a_box_of_which_nothing_is_left_is_none(box: Box) -> None:
    assert faithfulness.box_in_crop(box, 100, 100, 100, 60) is None


@pytest.mark.parametrize("place", range(4))
def test_a_box_that_is_no_number_is_none(place: int) -> None:
    box = [10.0, 10.0, 50.0, 50.0]
    box[place] = float("nan")
    assert faithfulness.box_in_crop(tuple(box), 100, 100, 64, 64) is None  # type: ignore[arg-type]
