"""Pictures of an image beside its map: what they show, and that long names fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from runner.explain import overlay
from runner.explain.overlay import HEADING, LINES, MARGIN, SIDE, wrapped


def draw(folder: Path, title: str = "✓ lamp, 98 %", label: str = "Grad-CAM for lamp") -> np.ndarray:
    """The pixels of a picture of an orange image, twice as wide as high, whose right half has the map's maximum."""
    image = torch.tensor([250, 150, 50], dtype=torch.uint8)[:, None, None].expand(3, 40, 80)
    heatmap = np.zeros((40, 80), np.float32)
    heatmap[:, 40:] = 1
    path = folder / "new folder" / "picture.png"
    overlay.draw(image, heatmap, title, label, path)
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def test_a_picture_shows_the_image_and_beside_it_the_image_under_its_map(tmp_path: Path) -> None:
    pixels = draw(tmp_path)
    width = 2 * SIDE
    assert pixels.shape[1] == 2 * width + 3 * MARGIN
    row = pixels[np.flatnonzero((pixels[:, MARGIN + 5] == (250, 150, 50)).all(axis=1))[SIDE // 2]]
    orange = (row == (250, 150, 50)).all(axis=1)
    assert orange[MARGIN : MARGIN + width].all(), "the image"
    right = 2 * MARGIN + width
    assert orange[right : right + width // 2 - 20].all(), "the image stays where the map is 0"
    hot = row[right + width // 2 + 20 : right + width]
    assert (hot.min(axis=0) > (240, 220, 100)).all(), "light yellow where it is 1"
    assert (row[-MARGIN:] == 255).all()


def test_the_color_of_a_map_is_its_value() -> None:
    gray = np.full((1, 256, 3), 128, np.uint8)
    blended = overlay.blend(gray, np.linspace(0, 1, 256, dtype=np.float32)[None]).astype(int)
    assert (blended[0, 0] == 128).all()
    change = np.abs(blended - 128).sum(axis=2)[0]
    assert change[-1] > change[128] > change[32] > 0


@pytest.mark.parametrize("character", "$_\\^{")
def test_math_characters_are_drawn_literally(tmp_path: Path, character: str) -> None:
    assert not np.array_equal(draw(tmp_path, title=f"a{character}b"), draw(tmp_path, title="ab"))
    assert wrapped(overlay.title("$a_b$ \\frac", 0.5, "100 %_^{"), HEADING, 600) == [
        "✗ $a_b$ \\frac, 50 %, true: 100 %_^{"
    ]


NAMES = [
    "lamp",
    "Northern Bobwhite or Virginia Quail",
    "a long name of many words " * 3,
    "x" * 120,
    "椅子" * 60,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
@pytest.mark.parametrize("width", [60, 90, 300, 600])
def test_texts_fit_and_lose_nothing_without_saying_so(name: str, width: int) -> None:
    text = overlay.title(name, 0.61, name)
    lines = wrapped(text, HEADING, width)
    font = overlay._font(HEADING)
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert 1 <= len(lines) <= LINES
    assert max(map(font.getlength, lines)) <= width
    whole = "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert whole or lines[-1].endswith("…")
    assert whole or len(lines) == LINES


def test_a_width_that_holds_no_letter_is_no_error() -> None:
    assert wrapped("ab cd", HEADING, 1)[0] == "a"


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_texts_cover_no_image(tmp_path: Path, name: str) -> None:
    pixels = draw(tmp_path, overlay.title(name, 0.61, name), f"Grad-CAM for {name}")
    column = pixels[:, MARGIN + 5]
    assert (column == (250, 150, 50)).all(axis=1).sum() == SIDE
    assert (pixels[:MARGIN] == 255).all()
    assert (pixels[-MARGIN // 2 :] == 255).all()
    assert (pixels[:, -MARGIN // 2 :] == 255).all()


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        (("lamp", 0.983, "lamp"), "✓ lamp, 98 %"),
        (("lamp", 0.61, "cup"), "✗ lamp, 61 %, true: cup"),
        (("lamp", 1.0), "lamp, 100 %"),
    ],
)
def test_a_title_shows_predicted_class_probability_and_true_class(arguments: Any, title: str) -> None:
    assert overlay.title(*arguments) == title
