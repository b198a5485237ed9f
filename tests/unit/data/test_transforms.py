"""Views: the same pixels wherever and whenever they are computed, and an effect of every setting."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import draw
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional, v2

from runner.config.augment_schema import AugmentConfig
from runner.data.transforms import EVALUATION_VIEW, ViewTransform, view_of_epoch
from runner.portable.images import open_rgb
from runner.utils import hashing
from runner.utils.rng import seeded

SMALL = AugmentConfig(resize=36, crop=32)

PLAIN = AugmentConfig(resize=40, crop=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, rotation=0.0)
"""An augmentation that only crops the center of an image of 40 × 40 pixels."""


def save(folder: Path, image: Image.Image, name: str = "picture.png", **more: object) -> Path:
    image.save(folder / name, **more)
    return folder / name


def square(number: int = 0, size: int = 40) -> Image.Image:
    return draw("red", number, (size, size))


def pixels(image: Image.Image) -> Tensor:
    return functional.pil_to_tensor(image)


# The view of an epoch


def test_without_augmentation_every_epoch_has_the_evaluation_view() -> None:
    assert [view_of_epoch(epoch, "none") for epoch in range(3)] == [EVALUATION_VIEW] * 3


def test_fresh_views_are_new_in_every_epoch() -> None:
    assert [view_of_epoch(epoch, "fresh") for epoch in range(5)] == [0, 1, 2, 3, 4]


def test_n_views_take_turns_and_eight_extend_four() -> None:
    assert [view_of_epoch(epoch, 4) for epoch in range(9)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [view_of_epoch(epoch, 8) for epoch in range(4)] == [view_of_epoch(epoch, 4) for epoch in range(4)]
    assert [view_of_epoch(epoch, 8) for epoch in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert {view_of_epoch(epoch, 1) for epoch in range(9)} == {0}


# A view is a function of seed, content and number


def test_a_view_is_the_same_in_any_order() -> None:
    transform = ViewTransform(SMALL, 3)
    keys = [(number, view) for number in range(3) for view in (EVALUATION_VIEW, 0, 1, 2)]
    forward = {key: transform(square(key[0]), f"image {key[0]}", key[1]) for key in keys}
    torch.rand(17)
    other = ViewTransform(SMALL, 3)
    for key in reversed(keys):
        assert torch.equal(other(square(key[0]), f"image {key[0]}", key[1]), forward[key])


def test_a_view_has_the_size_of_the_crop_and_type_uint8() -> None:
    for size in ((48, 40), (33, 90), (20, 20)):
        for view in (EVALUATION_VIEW, 0):
            view_of_image = ViewTransform(SMALL, 0)(draw("red", 0, size), "x", view)
            assert (view_of_image.shape, view_of_image.dtype) == ((3, 32, 32), torch.uint8)


def test_a_transform_does_not_change_the_global_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for view in (EVALUATION_VIEW, 0, 1):
        ViewTransform(SMALL, 0)(square(), "x", view)
    assert torch.equal(torch.rand(3), expected)


def test_a_view_does_not_depend_on_the_global_generator() -> None:
    views = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        views.append(ViewTransform(SMALL, 0)(square(), "x", 0))
    assert torch.equal(*views)


def test_a_failed_transform_does_not_change_the_global_generator() -> None:
    transform = ViewTransform(SMALL, 0)
    before = torch.random.get_rng_state()

    def fail(_image: Image.Image) -> Tensor:
        torch.rand(1)
        raise OSError("no picture")

    transform.augmented = fail  # type: ignore[assignment]
    with pytest.raises(OSError, match="no picture"):
        transform(square(), "x", 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_seed_content_and_number_has_its_own_view() -> None:
    image = square()
    keys = [(0, "x", 0), (1, "x", 0), (0, "y", 0), (0, "x", 1), (1, "y", 1)]
    views = {
        ViewTransform(SMALL, seed)(image, content, view).numpy().tobytes() for seed, content, view in keys
    }
    assert len(views) == len(keys)


def test_a_view_does_not_depend_on_the_path(tmp_path: Path) -> None:
    first, second = save(tmp_path, square(), "a.png"), save(tmp_path, square(), "b.png")
    transform = ViewTransform(SMALL, 0)
    assert torch.equal(transform(open_rgb(first), "same", 0), transform(open_rgb(second), "same", 0))


@pytest.mark.slow
def test_another_process_computes_the_same_view(tmp_path: Path) -> None:
    path = save(tmp_path, square())
    program = (
        "import sys; from runner.portable.images import open_rgb; from runner.data.transforms import ViewTransform;"
        "from runner.config.augment_schema import AugmentConfig;"
        "view = ViewTransform(AugmentConfig(resize=36, crop=32, hue=0.2), 7)(open_rgb(sys.argv[1]), 'content', 5);"
        "sys.stdout.write(view.numpy().tobytes().hex())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"},
    )
    here = ViewTransform(dataclasses.replace(SMALL, hue=0.2), 7)(open_rgb(path), "content", 5)
    assert other.stdout == here.numpy().tobytes().hex()


# What the settings do


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (300, 50), (20, 30)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_the_evaluation_view_is_resize_and_center_crop(size: tuple[int, int], interpolation: str) -> None:
    views = AugmentConfig(resize=40, crop=32, interpolation=interpolation)  # type: ignore[arg-type]
    image = draw("blue", 1, size)
    mode = functional.InterpolationMode(interpolation)
    expected = pixels(functional.center_crop(functional.resize(image, 40, mode), [32, 32]))
    assert torch.equal(ViewTransform(views, 0)(image, "x", EVALUATION_VIEW), expected)
    assert torch.equal(ViewTransform(views, 1)(image, "y", EVALUATION_VIEW), expected)


def test_augmentation_that_is_switched_off_leaves_a_center_crop() -> None:
    image = square()
    assert torch.equal(ViewTransform(PLAIN, 0)(image, "x", 0), pixels(image)[:, 4:36, 4:36])


def test_a_flip_of_probability_one_mirrors_left_and_right() -> None:
    image = square()
    views = dataclasses.replace(PLAIN, flip=1.0)
    assert torch.equal(ViewTransform(views, 0)(image, "x", 0), pixels(image)[:, 4:36, 4:36].flip(2))


def test_flips_have_the_given_probability() -> None:
    image = square()
    upright = pixels(image)[:, 4:36, 4:36]
    transform = ViewTransform(dataclasses.replace(PLAIN, flip=0.25), 0)
    flipped = sum(not torch.equal(transform(image, "x", view), upright) for view in range(200))
    assert 30 <= flipped <= 70


def test_rotations_stay_within_their_bounds() -> None:
    bar = np.zeros((40, 40, 3), dtype=np.uint8)
    bar[:, 19:21] = 255
    transform = ViewTransform(dataclasses.replace(PLAIN, rotation=15.0), 0)
    tops = [
        transform(Image.fromarray(bar), "x", view)[0, 0].float().argmax().item() - 15.5 for view in range(60)
    ]
    reach = 16 * np.tan(np.deg2rad(15)) + 1.5
    assert max(tops) <= reach
    assert min(tops) >= -reach
    assert max(tops) > reach / 2
    assert min(tops) < -reach / 2


def test_the_random_crop_covers_the_given_share_of_the_area() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (200, 200, 3))
    transform = ViewTransform(
        AugmentConfig(resize=64, crop=64, scale=(0.25, 0.36), ratio=(1, 1), flip=0, rotation=0), 0
    )
    for view in range(20):
        row = transform(Image.fromarray(np.ascontiguousarray(ramp)), "x", view)[0, 0].float()
        assert 0.45 < (row[-1] - row[0]).item() / 255 < 0.65


@pytest.mark.parametrize(
    "change",
    [
        {"scale": (0.3, 0.4)},
        {"ratio": (1.4, 1.5)},
        {"flip": 1.0},
        {"rotation": 90.0},
        {"brightness": 0.5},
        {"contrast": 0.5},
        {"saturation": 0.9},
        {"hue": 0.5},
        {"policy": "randaugment"},
        {"policy": "randaugment", "magnitude": 20},
        {"policy": "trivialaugment"},
        {"erasing": 1.0},
        {"resize": 60},
        {"crop": 36},
    ],
    ids=str,
)
def test_every_setting_of_the_augmentation_takes_effect(change: dict[str, object]) -> None:
    plain = ViewTransform(PLAIN, 0)
    changed = ViewTransform(dataclasses.replace(PLAIN, **change), 0)  # type: ignore[arg-type]
    before, after = plain(square(), "x", 0), changed(square(), "x", 0)
    assert before.shape != after.shape or not torch.equal(before, after)
    assert plain.recipe(0) != changed.recipe(0)


def test_both_interpolations_take_effect() -> None:
    turned = dataclasses.replace(PLAIN, resize=50, rotation=90.0)
    smooth = dataclasses.replace(turned, rotation_interpolation="bilinear")
    cubic = dataclasses.replace(turned, interpolation="bicubic")
    views = {ViewTransform(each, 0)(square(), "x", 0).numpy().tobytes() for each in (turned, smooth, cubic)}
    assert len(views) == 3


def test_brightness_multiplies_and_saturation_leaves_gray_alone() -> None:
    gray = Image.new("RGB", (40, 40), (100, 100, 100))
    bright = ViewTransform(dataclasses.replace(PLAIN, brightness=0.5), 0)
    levels = [bright(gray, "x", view).unique().tolist() for view in range(30)]
    assert all(len(level) == 1 and 50 <= level[0] <= 150 for level in levels)
    assert len({level[0] for level in levels}) > 10
    saturated = ViewTransform(dataclasses.replace(PLAIN, saturation=0.9), 0)(gray, "x", 0)
    assert torch.equal(saturated, pixels(gray)[:, :32, :32])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"policy": "randaugment", "operations": 3, "magnitude": 5}, v2.RandAugment(3, 5)),
        ({"policy": "trivialaugment"}, v2.TrivialAugmentWide()),
    ],
    ids=["randaugment", "trivialaugment"],
)
def test_policies_are_those_of_torchvision(words: dict[str, Any], expected: v2.Transform) -> None:
    transform = ViewTransform(dataclasses.replace(PLAIN, **words), 0)
    for view in range(10):
        with seeded(hashing.derive_seed("view", 0, "x", view)):
            whole = v2.RandomResizedCrop(40, scale=(1.0, 1.0), ratio=(1.0, 1.0))(square())
            image = v2.CenterCrop(32)(expected(whole))
        assert torch.equal(transform(square(), "x", view), pixels(image))


def test_erased_rectangles_have_the_mean_color_and_the_probability_of_the_setting() -> None:
    black = Image.new("RGB", (40, 40))
    views = [
        ViewTransform(dataclasses.replace(PLAIN, erasing=0.5), 0)(black, "x", view) for view in range(200)
    ]
    erased = [view for view in views if view.any()]
    assert 70 < len(erased) < 130
    for view in erased:
        colors = {tuple(color) for color in view.flatten(1).T.tolist()}
        assert colors == {(0, 0, 0), (124, 116, 104)}


def test_a_recipe_holds_every_setting_that_decides_a_view() -> None:
    names = {each.name for each in dataclasses.fields(AugmentConfig)} - {
        *("views", "crop_mode", "scales", "tta"),
        # They are in the recipe only where they have an effect, so that existing features stay valid.
        *("policy", "operations", "magnitude", "erasing"),
    }
    assert ViewTransform(SMALL, 4).recipe(0).keys() == names | {"seed"}
    everything = dataclasses.replace(SMALL, policy="randaugment", erasing=0.1)
    further = {"policy", "operations", "magnitude", "erasing"}
    assert ViewTransform(everything, 4).recipe(0).keys() == names | {"seed"} | further
    assert ViewTransform(everything, 4).recipe(EVALUATION_VIEW) == ViewTransform(SMALL, 4).recipe(
        EVALUATION_VIEW
    )
    assert ViewTransform(SMALL, 4).recipe(0) == ViewTransform(SMALL, 4).recipe(9)
    assert ViewTransform(SMALL, 4).recipe(EVALUATION_VIEW) == ViewTransform(
        dataclasses.replace(SMALL, hue=0.1), 5
    ).recipe(EVALUATION_VIEW)
    assert ViewTransform(SMALL, 4).recipe(0) != ViewTransform(SMALL, 5).recipe(0)
    squashed = ViewTransform(dataclasses.replace(SMALL, crop_mode="squash"), 4)
    assert squashed.recipe(EVALUATION_VIEW)["crop_mode"] == "squash"
    assert "crop_mode" not in ViewTransform(SMALL, 4).recipe(EVALUATION_VIEW)  # existing features stay valid


def test_the_recipe_of_a_squashed_image_does_not_depend_on_resize() -> None:
    for crop_mode, is_idle in (("squash", True), ("center", False)):
        usual, other = (
            ViewTransform(AugmentConfig(crop_mode=crop_mode, resize=resize), 0)  # type: ignore[arg-type]
            for resize in (256, 300)
        )
        assert (usual.recipe(EVALUATION_VIEW) == other.recipe(EVALUATION_VIEW)) is is_idle
        assert usual.recipe(0) != other.recipe(0)
    sizes = [
        ViewTransform(AugmentConfig(crop_mode="squash", scales=scales), 0).recipe(EVALUATION_VIEW)["resize"]
        for scales in ((), (224, 320))
    ]
    assert sizes == [256, 320]  # existing features stay valid


def test_a_squashed_image_is_whole() -> None:
    image = Image.new("RGB", (90, 30))
    image.paste((255, 0, 0), (0, 0, 15, 30))
    view = ViewTransform(dataclasses.replace(SMALL, crop_mode="squash"), 0)(image, "", EVALUATION_VIEW)
    side = SMALL.crop
    assert view.shape == (3, side, side)
    assert (view[0, :, : side // 6 - 1] > 200).all()
    assert (view[:, :, side // 3 :] == 0).all()
