"""Every kind of image file becomes upright 8-bit RGB."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from runner.portable import images
from runner.portable.images import open_rgb

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
"""How an upright picture is stored in a file of each EXIF orientation."""


def opened(path: Path) -> list[tuple[int, ...]]:
    """The pixels of a file, row by row."""
    image = open_rgb(path)
    assert image.mode == "RGB"
    return [tuple(pixel) for pixel in np.asarray(image).reshape(-1, 3).tolist()]


def save(folder: Path, image: Image.Image, name: str = "picture.png", **more: object) -> Path:
    image.save(folder / name, **more)
    return folder / name


def row(mode: str, *values: object) -> Image.Image:
    """An image one pixel high."""
    image = Image.new(mode, (len(values), 1))
    for index, value in enumerate(values):
        image.putpixel((index, 0), value)  # type: ignore[arg-type]
    return image


def test_gray_becomes_equal_channels(tmp_path: Path) -> None:
    assert opened(save(tmp_path, row("L", 0, 90, 255))) == [(0, 0, 0), (90, 90, 90), (255, 255, 255)]


def test_one_bit_becomes_black_and_white(tmp_path: Path) -> None:
    assert opened(save(tmp_path, row("1", 0, 1))) == [(0, 0, 0), (255, 255, 255)]


def test_rgb_stays_as_it_is(tmp_path: Path) -> None:
    assert opened(save(tmp_path, row("RGB", (1, 2, 3), (250, 0, 9)))) == [(1, 2, 3), (250, 0, 9)]


@pytest.mark.parametrize("name", ["picture.png", "picture.gif"])
def test_palette_numbers_become_their_colors(tmp_path: Path, name: str) -> None:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    assert opened(save(tmp_path, image, name)) == [(10, 20, 30), (200, 100, 50), (7, 8, 9)]


def test_a_transparent_palette_color_is_placed_on_white(tmp_path: Path) -> None:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    path = save(tmp_path, image, transparency=1)
    assert opened(path) == [(10, 20, 30), (255, 255, 255), (7, 8, 9)]


def test_palette_colors_of_graded_transparency_are_placed_on_white(tmp_path: Path) -> None:
    image = row("P", 0, 1, 2)
    image.putpalette([10, 20, 30, 200, 100, 0, 7, 8, 9])
    path = save(tmp_path, image, transparency=bytes([0, 51, 255]))
    assert opened(path) == [(255, 255, 255), (244, 224, 204), (7, 8, 9)]


def test_alpha_is_placed_on_white(tmp_path: Path) -> None:
    image = row("RGBA", (255, 0, 0, 255), (255, 0, 0, 51), (9, 9, 9, 0))
    assert opened(save(tmp_path, image)) == [(255, 0, 0), (255, 204, 204), (255, 255, 255)]


def test_gray_with_alpha_is_placed_on_white(tmp_path: Path) -> None:
    image = row("LA", (100, 255), (0, 51), (0, 0))
    assert opened(save(tmp_path, image)) == [(100,) * 3, (204,) * 3, (255,) * 3]


@pytest.mark.parametrize(
    ("image", "transparent", "other"),
    [(row("RGB", (10, 20, 30), (1, 2, 3)), (10, 20, 30), (1, 2, 3)), (row("L", 10, 70), 10, (70, 70, 70))],
    ids=["rgb", "gray"],
)
def test_one_color_declared_transparent_is_placed_on_white(
    tmp_path: Path, image: Image.Image, transparent: object, other: tuple[int, ...]
) -> None:
    assert opened(save(tmp_path, image, transparency=transparent)) == [(255, 255, 255), other]


@pytest.mark.parametrize(
    ("ink", "color"),
    [((0, 255, 255, 0), (255, 0, 0)), ((255, 0, 0, 0), (0, 255, 255)), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_jpeg_becomes_the_colors_of_its_inks(
    tmp_path: Path, ink: tuple[int, ...], color: tuple[int, ...]
) -> None:
    path = save(tmp_path, Image.new("CMYK", (16, 16), ink), "print.jpg", quality=95)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(np.array(opened(path)) - color).max() <= 3


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 257 * 100, 257 * 100 + 100, 65535]], dtype=np.uint16)
    path = save(tmp_path, Image.fromarray(values))
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    assert opened(path) == [(v, v, v) for v in (0, 1, 100, 100, 255)]


@pytest.mark.parametrize(
    ("values", "expected"), [([0.0, 0.2, 1.0], (0, 51, 255)), ([0.0, 51.0, 256.0], (0, 51, 255))]
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
    stored = np.ascontiguousarray(ORIENTED[orientation](upright))
    path = save(tmp_path, Image.fromarray(stored), exif=exif)
    assert np.array_equal(np.asarray(open_rgb(path)), upright)


def test_a_program_is_not_run(tmp_path: Path) -> None:
    """Pillow would let Ghostscript run an EPS file."""
    with pytest.raises(ValueError, match="EPS"):
        open_rgb(save(tmp_path, Image.new("RGB", (4, 4)), "picture.eps"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L"])
def test_transparency_is_placed_on_white_in_strips(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).integers(0, 256, (9, 7, 4), np.uint8)
    image = Image.fromarray(values)
    image = image.quantize(200) if mode == "P" else image.convert("LA").convert(mode)
    if mode in ("P", "L"):
        image.info["transparency"] = 3 if mode == "L" else bytes(range(200))
    whole = images.to_rgb(image)
    monkeypatch.setattr(images, "PIXELS_PER_STRIP", 14)
    assert np.array_equal(np.asarray(images.to_rgb(image)), np.asarray(whole))


@pytest.mark.parametrize(
    ("name", "dtype", "channels"), [("rgba.png", "uint8", 4), ("deep.tiff", "float32", 1)]
)
def test_the_memory_for_an_image_is_bounded(tmp_path: Path, name: str, dtype: str, channels: int) -> None:
    """As the server's limit of pixels promises, which is 64 million for 1.1 GB: 17 bytes for each."""
    side = 4096
    values = np.zeros((side, side, channels), dtype)
    values[::3] = 100
    Image.fromarray(values.squeeze()).save(tmp_path / name, compress_level=1)
    code = """
import sys, pathlib
from runner.portable.images import open_rgb

def kilobytes(name):
    return int(pathlib.Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

before = kilobytes("VmRSS")
open_rgb(sys.argv[1])
print(kilobytes("VmHWM") - before)
"""
    words = [sys.executable, "-c", code, str(tmp_path / name)]
    taken = int(subprocess.run(words, capture_output=True, check=True, text=True).stdout) * 1024
    assert taken < 17 * side * side


@pytest.mark.parametrize("opened", [False, True])
def test_a_large_file_that_is_no_image_is_not_read(tmp_path: Path, opened: bool) -> None:
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(3 * 2**30)
    tracemalloc.start()
    try:
        with path.open("rb") as content, pytest.raises(UnidentifiedImageError):
            open_rgb(content if opened else path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
