"""From files to the pixels that the network sees, the same wherever and whenever they are computed."""

from __future__ import annotations

import dataclasses
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import draw
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

from runner.config.schema import AugmentConfig, Experiment
from runner.data.channel_stats import channel_statistics
from runner.data.loader import ImageLoader
from runner.data.manifest import Manifest, build_manifest
from runner.data.transforms import EVALUATION_VIEW, ViewTransform, view_of_epoch
from runner.portable.images import open_rgb
from runner.utils import atomic_files
from runner.utils.console import Terminal
from runner.utils.errors import UserError

Make = Callable[..., Experiment]
SMALL = AugmentConfig(resize=36, crop=32)
PLAIN = AugmentConfig(resize=40, crop=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, rotation=0.0)
"""An augmentation that does nothing to a square image of 40 pixels but cut out its centre."""
ORIENTED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright, 1),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}
"""How an upright picture lies in a file of each EXIF orientation."""


def opened(path: Path) -> list[tuple[int, ...]]:
    """The pixels of a file, row by row."""
    image = open_rgb(path)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def save(folder: Path, image: Image.Image, name: str = "picture.png", **more: object) -> Path:
    image.save(folder / name, **more)
    return folder / name


def row(mode: str, *values: object) -> Image.Image:
    """A picture one pixel high."""
    image = Image.new(mode, (len(values), 1))
    for place, value in enumerate(values):
        image.putpixel((place, 0), value)  # type: ignore[arg-type]
    return image


def square(number: int = 0, size: int = 40) -> Image.Image:
    return draw("red", number, (size, size))


def pixels(image: Image.Image) -> Tensor:
    return functional.pil_to_tensor(image)


@pytest.fixture
def manifest(make: Make, silent: Terminal) -> Manifest:
    return build_manifest(make(), silent)


# Every kind of file becomes RGB


def test_gray_becomes_equal_channels(tmp_path: Path) -> None:
    assert opened(save(tmp_path, row("L", 0, 90, 255))) == [(0, 0, 0), (90, 90, 90), (255, 255, 255)]


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    assert opened(save(tmp_path, row("1", 0, 1))) == [(0, 0, 0), (255, 255, 255)]


def test_rgb_stays_as_it_is(tmp_path: Path) -> None:
    assert opened(save(tmp_path, row("RGB", (1, 2, 3), (250, 0, 9)))) == [(1, 2, 3), (250, 0, 9)]


@pytest.mark.parametrize("name", ["picture.png", "picture.gif"])
def test_palette_numbers_become_their_colours(tmp_path: Path, name: str) -> None:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    assert opened(save(tmp_path, image, name)) == [(10, 20, 30), (200, 100, 50), (7, 8, 9)]


def test_a_transparent_palette_colour_lies_on_white(tmp_path: Path) -> None:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    path = save(tmp_path, image, transparency=1)
    assert opened(path) == [(10, 20, 30), (255, 255, 255), (7, 8, 9)]


def test_palette_colours_of_graded_transparency_lie_on_white(tmp_path: Path) -> None:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    path = save(tmp_path, image, transparency=bytes([0, 51, 255]))
    assert opened(path) == [(255, 255, 255), (244, 224, 204), (7, 8, 9)]


def test_alpha_lies_on_white(tmp_path: Path) -> None:
    image = row("RGBA", (255, 0, 0, 255), (255, 0, 0, 51), (9, 9, 9, 0))
    assert opened(save(tmp_path, image)) == [(255, 0, 0), (255, 204, 204), (255, 255, 255)]


def test_gray_with_alpha_lies_on_white(tmp_path: Path) -> None:
    image = row("LA", (100, 255), (0, 51), (0, 0))
    assert opened(save(tmp_path, image)) == [(100,) * 3, (204,) * 3, (255,) * 3]


@pytest.mark.parametrize(
    ("image", "transparent", "other"),
    [(row("RGB", (10, 20, 30), (1, 2, 3)), (10, 20, 30), (1, 2, 3)), (row("L", 10, 70), 10, (70, 70, 70))],
    ids=["rgb", "gray"],
)
def test_one_colour_declared_transparent_lies_on_white(
    tmp_path: Path, image: Image.Image, transparent: object, other: tuple[int, ...]
) -> None:
    assert opened(save(tmp_path, image, transparency=transparent)) == [(255, 255, 255), other]


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg_becomes_the_colours_of_its_inks(
    tmp_path: Path, ink: tuple[int, ...], colour: tuple[int, ...]
) -> None:
    path = save(tmp_path, Image.new("CMYK", (16, 16), ink), "print.jpg", quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(np.array(opened(path)) - colour).max() <= 3


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 257 * 100, 257 * 100 + 100, 65535]], dtype=np.uint16)
    path = save(tmp_path, Image.fromarray(values))
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    assert opened(path) == [(v, v, v) for v in (0, 1, 100, 100, 255)]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.2, 1.0], (0, 51, 255)), ([0.0, 51.0, 300.0], (0, 51, 255))]
)
def test_floating_point_gray_is_scaled_by_its_range(
    tmp_path: Path, values: list[float], expected: tuple[int, ...]
) -> None:
    path = save(tmp_path, Image.fromarray(np.array([values], dtype=np.float32)), "float.tiff")
    assert opened(path) == [(v, v, v) for v in expected]


@pytest.mark.parametrize("orientation", ORIENTED)
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 10
    exif = Image.Exif()
    exif[0x0112] = orientation
    lying = np.ascontiguousarray(ORIENTED[orientation](upright))
    path = save(tmp_path, Image.fromarray(lying), exif=exif)
    assert np.array_equal(np.asarray(open_rgb(path)), upright)


# Which view an epoch sees


def test_clean_training_always_sees_the_evaluation_view() -> None:
    assert [view_of_epoch(epoch, "clean") for epoch in range(3)] == [EVALUATION_VIEW] * 3


def test_fresh_training_never_sees_a_view_twice() -> None:
    assert [view_of_epoch(epoch, "fresh") for epoch in range(5)] == [0, 1, 2, 3, 4]


def test_n_views_take_turns_and_eight_extend_four() -> None:
    assert [view_of_epoch(epoch, 4) for epoch in range(9)] == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert [view_of_epoch(epoch, 8) for epoch in range(4)] == [view_of_epoch(epoch, 4) for epoch in range(4)]
    assert [view_of_epoch(epoch, 8) for epoch in range(9)] == [0, 1, 2, 3, 4, 5, 6, 7, 0]
    assert {view_of_epoch(epoch, 1) for epoch in range(9)} == {0}


# A view is a function of seed, content and number


def test_a_view_is_the_same_in_any_order() -> None:
    renderer = ViewTransform(SMALL, 3)
    asked = [(number, view) for number in range(3) for view in (EVALUATION_VIEW, 0, 1, 2)]
    forward = {each: renderer(square(each[0]), f"image {each[0]}", each[1]) for each in asked}
    torch.rand(17)
    other = ViewTransform(SMALL, 3)
    for each in reversed(asked):
        assert torch.equal(other(square(each[0]), f"image {each[0]}", each[1]), forward[each])


def test_a_view_is_the_networks_size_and_uint8() -> None:
    for size in ((48, 40), (33, 90), (20, 20)):
        for view in (EVALUATION_VIEW, 0):
            rendered = ViewTransform(SMALL, 0)(draw("red", 0, size), "x", view)
            assert (rendered.shape, rendered.dtype) == ((3, 32, 32), torch.uint8)


def test_rendering_leaves_the_global_generator_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for view in (EVALUATION_VIEW, 0, 1):
        ViewTransform(SMALL, 0)(square(), "x", view)
    assert torch.equal(torch.rand(3), expected)


def test_the_global_generator_does_not_matter_to_a_view() -> None:
    views = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        views.append(ViewTransform(SMALL, 0)(square(), "x", 0))
    assert torch.equal(*views)


def test_a_failed_rendering_leaves_the_global_generator_as_it_was() -> None:
    renderer = ViewTransform(SMALL, 0)
    before = torch.random.get_rng_state()

    def fail(_image: Image.Image) -> Tensor:
        torch.rand(1)
        raise OSError("no picture")

    renderer.augmented = fail  # type: ignore[assignment]
    with pytest.raises(OSError, match="no picture"):
        renderer(square(), "x", 0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_other_seeds_contents_and_numbers_give_other_views() -> None:
    image = square()
    keys = [(0, "x", 0), (1, "x", 0), (0, "y", 0), (0, "x", 1), (1, "y", 1)]
    views = {ViewTransform(SMALL, seed)(image, content, view).numpy().tobytes() for seed, content, view in keys}
    assert len(views) == len(keys)


def test_a_view_does_not_depend_on_where_its_file_lies(tmp_path: Path) -> None:
    first, second = save(tmp_path, square(), "a.png"), save(tmp_path, square(), "b.png")
    renderer = ViewTransform(SMALL, 0)
    assert torch.equal(renderer(open_rgb(first), "same", 0), renderer(open_rgb(second), "same", 0))


def test_another_process_renders_the_same_view(tmp_path: Path) -> None:
    path = save(tmp_path, square())
    program = (
        "import sys; from runner.portable.images import open_rgb; from runner.data.transforms import Renderer;"
        "from runner.config.schema import Views;"
        "view = Renderer(AugmentConfig(resize=36, crop=32, hue=0.2), 7)(open_rgb(sys.argv[1]), 'content', 5);"
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


@pytest.mark.parametrize("view", [EVALUATION_VIEW, 1])
def test_loader_processes_render_the_same_views_in_the_same_order(manifest: Manifest, view: int) -> None:
    entries = manifest.select("train")
    batches = [[5, 0, 11], [2], [17, 17, 3, 4]]
    renderer = ViewTransform(SMALL, 0)
    alone = list(ImageLoader(manifest.root, renderer, workers=0).batches(entries, view, batches))
    helped = list(ImageLoader(manifest.root, renderer, workers=2).batches(entries, view, batches))
    assert [len(batch) for batch in alone] == [3, 1, 4]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))
    for batch, places in zip(alone, batches, strict=True):
        for rendered, place in zip(batch, places, strict=True):
            entry = entries[place]
            assert torch.equal(rendered, renderer(open_rgb(manifest.root / entry.path), entry.digest, view))


def test_a_few_images_need_no_processes() -> None:
    loader = ImageLoader(Path(), ViewTransform(SMALL, 0))
    assert loader._workers(100) == 0
    assert loader._workers(10_000) >= 1
    assert ImageLoader(Path(), ViewTransform(SMALL, 0), workers=3)._workers(1) == 3


# What the settings do


@pytest.mark.parametrize("size", [(48, 40), (40, 48), (300, 50), (20, 30)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
def test_the_evaluation_view_is_resize_and_centre_crop(size: tuple[int, int], interpolation: str) -> None:
    views = AugmentConfig(resize=40, crop=32, interpolation=interpolation)  # type: ignore[arg-type]
    image = draw("blue", 1, size)
    mode = functional.InterpolationMode(interpolation)
    expected = pixels(functional.center_crop(functional.resize(image, 40, mode), [32, 32]))
    assert torch.equal(ViewTransform(views, 0)(image, "x", EVALUATION_VIEW), expected)
    assert torch.equal(ViewTransform(views, 1)(image, "y", EVALUATION_VIEW), expected)


def test_an_augmentation_that_is_switched_off_cuts_out_the_centre() -> None:
    image = square()
    assert torch.equal(ViewTransform(PLAIN, 0)(image, "x", 0), pixels(image)[:, 4:36, 4:36])


def test_a_certain_flip_mirrors_left_and_right() -> None:
    image = square()
    views = dataclasses.replace(PLAIN, flip=1.0)
    assert torch.equal(ViewTransform(views, 0)(image, "x", 0), pixels(image)[:, 4:36, 4:36].flip(2))


def test_a_flip_comes_about_as_often_as_asked() -> None:
    image = square()
    upright = pixels(image)[:, 4:36, 4:36]
    renderer = ViewTransform(dataclasses.replace(PLAIN, flip=0.25), 0)
    flipped = sum(not torch.equal(renderer(image, "x", view), upright) for view in range(200))
    assert 30 <= flipped <= 70


def test_a_rotation_turns_about_the_centre_within_its_bounds() -> None:
    bar = np.zeros((40, 40, 3), dtype=np.uint8)
    bar[:, 19:21] = 255
    renderer = ViewTransform(dataclasses.replace(PLAIN, rotation=15.0), 0)
    tops = [
        renderer(Image.fromarray(bar), "x", view)[0, 0].float().argmax().item() - 15.5 for view in range(60)
    ]
    reach = 16 * np.tan(np.deg2rad(15)) + 1.5
    assert max(tops) <= reach
    assert min(tops) >= -reach
    assert max(tops) > reach / 2
    assert min(tops) < -reach / 2


def test_the_random_crop_keeps_to_its_share_of_the_area() -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, 200).astype(np.uint8)[None, :, None], (200, 200, 3))
    renderer = ViewTransform(AugmentConfig(resize=64, crop=64, scale=(0.25, 0.36), ratio=(1, 1), flip=0, rotation=0), 0)
    for view in range(20):
        shown = renderer(Image.fromarray(np.ascontiguousarray(ramp)), "x", view)[0, 0].float()
        assert 0.45 < (shown[-1] - shown[0]).item() / 255 < 0.65


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
        {"resize": 60},
        {"crop": 36},
    ],
    ids=lambda change: next(iter(change)),
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


def test_a_recipe_names_every_setting_that_decides_a_view() -> None:
    names = {each.name for each in dataclasses.fields(AugmentConfig)} - {"train"}
    assert ViewTransform(SMALL, 4).recipe(0).keys() == names | {"seed"}
    assert ViewTransform(SMALL, 4).recipe(0) == ViewTransform(SMALL, 4).recipe(9)
    assert ViewTransform(SMALL, 4).recipe(EVALUATION_VIEW) == ViewTransform(dataclasses.replace(SMALL, hue=0.1), 5).recipe(EVALUATION_VIEW)
    assert ViewTransform(SMALL, 4).recipe(0) != ViewTransform(SMALL, 5).recipe(0)


# Channel statistics


def test_channel_statistics_are_those_that_the_report_defines(
    manifest: Manifest, silent: Terminal, tmp_path: Path
) -> None:
    entries = manifest.select("train")
    found = channel_statistics(entries, ImageLoader(manifest.root, ViewTransform(SMALL, 0)), tmp_path / "kept", silent)
    shown = []
    for entry in entries:
        with Image.open(manifest.root / entry.path) as image:
            cropped = functional.center_crop(functional.resize(image, 36), [32, 32])
            shown.append(np.asarray(cropped, dtype=np.float64) / 255)
    assert found.mean == pytest.approx(np.mean([each.mean(axis=(0, 1)) for each in shown], axis=0), abs=2e-6)
    assert found.std == pytest.approx(np.mean([each.std(axis=(0, 1)) for each in shown], axis=0), abs=2e-6)
    assert found.std != pytest.approx(np.std(np.stack(shown), axis=(0, 1, 2)), abs=1e-3)


def test_channel_statistics_cover_more_than_a_batch(
    manifest: Manifest, silent: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = ImageLoader(manifest.root, ViewTransform(SMALL, 0))
    whole = channel_statistics(manifest.select("train"), loader, tmp_path / "a", silent)
    monkeypatch.setattr("runner.data.channel_stats.BATCH", 7)
    assert channel_statistics(manifest.select("train"), loader, tmp_path / "b", silent) == whole


def test_channel_statistics_are_kept_and_read_nothing_again(
    manifest: Manifest, silent: Terminal, tmp_path: Path
) -> None:
    entries = manifest.select("train")
    kept = tmp_path / "kept"
    first = channel_statistics(entries, ImageLoader(manifest.root, ViewTransform(SMALL, 0)), kept, silent)
    nowhere = ImageLoader(tmp_path / "nowhere", ViewTransform(dataclasses.replace(SMALL, hue=0.1), 9))
    assert channel_statistics(entries[::-1], nowhere, kept, silent) == first
    with pytest.raises(UserError):
        channel_statistics(entries[1:], nowhere, kept, silent)
    with pytest.raises(UserError):
        channel_statistics(entries, dataclasses.replace(nowhere, renderer=ViewTransform(PLAIN, 0)), kept, silent)


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"mean": [0, 0, 0]}', "null"])
def test_damaged_statistics_are_computed_again(
    manifest: Manifest, silent: Terminal, tmp_path: Path, content: str
) -> None:
    entries = manifest.select("val")
    loader = ImageLoader(manifest.root, ViewTransform(SMALL, 0))
    first = channel_statistics(entries, loader, tmp_path / "kept", silent)
    (memory,) = (tmp_path / "kept" / "statistics").iterdir()
    whole = memory.read_text()
    memory.write_text(content)
    assert channel_statistics(entries, loader, tmp_path / "kept", silent) == first
    assert memory.read_text() == whole


# Files that go or change after they were verified


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_deleted_after_the_scan_is_named(manifest: Manifest, workers: int) -> None:
    entries = manifest.select("train")
    gone = manifest.root / entries[4].path
    gone.unlink()
    batches = ImageLoader(manifest.root, ViewTransform(SMALL, 0), workers=workers).batches(entries, 0, [[0, 1], [3, 4]])
    assert len(next(batches)) == 2
    with pytest.raises(UserError) as stopped:
        next(batches)
    assert str(gone) in str(stopped.value)


def test_a_file_cut_off_after_the_scan_is_named(manifest: Manifest) -> None:
    entries = manifest.select("train")
    path = manifest.root / entries[4].path
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=path.name):
        list(ImageLoader(manifest.root, ViewTransform(SMALL, 0), workers=0).batches(entries, EVALUATION_VIEW, [[4]]))


def test_a_file_replaced_by_another_picture_after_the_scan_is_named(manifest: Manifest) -> None:
    entries = manifest.select("train")
    path = manifest.root / entries[4].path
    draw("green", 99, (80, 80)).save(path)
    with pytest.raises(UserError, match=path.name):
        list(ImageLoader(manifest.root, ViewTransform(SMALL, 0), workers=0).batches(entries, EVALUATION_VIEW, [[4]]))


# All or nothing on disk


def test_a_file_is_replaced_whole_and_without_litter(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.txt"
    atomic_files.write_text(path, "one")
    with atomic_files.atomic_write(path) as aside:
        aside.write_text("two")
        assert path.read_text() == "one"
        assert aside.parent == path.parent
    assert path.read_text() == "two"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, old: str | None, failure: type[BaseException]
) -> None:
    path = tmp_path / "file.txt"
    if old is not None:
        path.write_text(old)

    def write_half() -> None:
        with atomic_files.atomic_write(path) as aside:
            aside.write_text("half")
            raise failure

    with pytest.raises(failure):
        write_half()
    assert [each.read_text() for each in tmp_path.iterdir()] == ([old] if old is not None else [])


def test_a_replaced_file_has_the_mode_of_an_ordinary_one(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    atomic_files.write_text(tmp_path / "replaced", "text")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "replaced")]
    assert modes[0] == modes[1]


def test_free_bytes_of_a_folder_that_is_not_there_yet_are_those_of_its_disk(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    found = atomic_files.free_bytes(tmp_path / "not" / "yet")
    assert abs(found - status.f_bavail * status.f_frsize) < 2**30
    assert found > 0
