"""Pictures of an image beside its map: what they show, and that long names fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from runner.explain import overlay


@pytest.fixture
def drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`drawn(title, label)`: the figure of a picture, after checking that it was written as a PNG file."""
    figures: list[Figure] = []
    save = Figure.savefig

    def remember(self: Figure, *words: Any, **named: Any) -> None:
        figures.append(self)
        save(self, *words, **named)

    monkeypatch.setattr(Figure, "savefig", remember)

    def start(title: str = "✓ lamp, 98 %", label: str = "Grad-CAM for lamp") -> Figure:
        image = torch.randint(0, 256, (3, 40, 48), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        found = np.linspace(0, 1, 40 * 48, dtype=np.float32).reshape(40, 48)
        path = tmp_path / "new folder" / "picture.png"
        overlay.draw(image, found, title, label, path)
        with Image.open(path) as picture:
            assert picture.format == "PNG"
        assert list(path.parent.iterdir()) == [path]
        return figures[-1]

    return start


def test_a_picture_shows_the_image_its_overlay_and_a_color_bar(drawn: Callable[..., Any]) -> None:
    figure = drawn()
    left, right, bar = figure.axes
    assert [len(axes.images) for axes in (left, right)] == [1, 2]
    np.testing.assert_array_equal(left.images[0].get_array(), right.images[0].get_array())
    shade = right.images[1]
    assert shade.get_array().shape == (40, 48)
    assert shade.get_clim() == (0, 1)
    assert 0.3 < shade.get_alpha() < 0.8
    assert bar.get_ylabel() == "Grad-CAM for lamp"
    assert [tick.get_text() for tick in bar.get_yticklabels()] == ["0.0", "0.5", "1.0"]
    assert figure.get_suptitle() == "✓ lamp, 98 %"
    assert bar.get_window_extent().x0 > right.get_window_extent().x1 > left.get_window_extent().x1


def test_math_characters_are_drawn_literally(
    drawn: Callable[..., Any], recwarn: pytest.WarningsRecorder
) -> None:
    figure = drawn(overlay.title("$a_b$ \\frac", 0.5, "100 %_^{"), "Grad-CAM for $x$ $")
    assert figure.get_suptitle() == "✗ $a_b$ \\frac, 50 %, true: 100 %_^{"
    assert [str(each.message) for each in recwarn if "lyph" in str(each.message)] == []


NAMES = ["lamp", "Northern Bobwhite or Virginia Quail", "a long name of many words " * 3, "x" * 120]


def outside(figure: Figure, text: Any) -> float:
    """Pixels by which a text exceeds the picture."""
    whole, own = figure.bbox, text.get_window_extent()
    return float(max(whole.x0 - own.x0, own.x1 - whole.x1, whole.y0 - own.y0, own.y1 - whole.y1, 0))


@pytest.mark.parametrize("name", NAMES[:3], ids=len)
def test_the_title_fits_and_covers_no_image(drawn: Callable[..., Any], name: str) -> None:
    figure = drawn(overlay.title(name, 0.61, name), "Grad-CAM")
    assert outside(figure, figure._suptitle) < 2
    own, panel = figure._suptitle.get_window_extent(), figure.axes[0].get_window_extent()
    assert own.y0 >= panel.y1, "it covers an image"


@pytest.mark.parametrize("name", NAMES[1:3], ids=len)
def test_the_label_of_the_color_bar_fits(drawn: Callable[..., Any], name: str) -> None:
    figure = drawn(overlay.title("lamp", 0.61), f"Grad-CAM for {name}")
    label = figure.axes[2].yaxis.label
    assert outside(figure, label) < 2
    assert not label.get_window_extent().overlaps(figure._suptitle.get_window_extent())


def test_a_long_word_in_the_title_fits(drawn: Callable[..., Any]) -> None:
    figure = drawn(overlay.title(NAMES[3], 0.61, "lamp"), "Grad-CAM")
    assert outside(figure, figure._suptitle) < 2


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
