"""Draws an image beside its class activation map."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from runner.utils.figures import new_figure, save_figure

OPACITY = 0.55


def title(predicted: str, probability: float, true: str | None = None) -> str:
    """A picture's title: `✓ lamp, 98 %` or `✗ lamp, 61 %, true: cup`; no mark if the true class is unknown."""
    prediction = f"{predicted}, {100 * probability:.0f} %"
    if true is None:
        return prediction
    return f"✓ {prediction}" if predicted == true else f"✗ {prediction}, true: {true}"


def draw(image: Tensor, heatmap: np.ndarray, title: str, label: str, path: Path) -> None:
    """Draw an image and, beside it, the image under its map, with a color bar.

    Args:
        image: 3 × h × w, uint8, as the model sees it.
        heatmap: The map, h × w in [0, 1].
        title: Title of the picture.
        label: Label of the color bar, such as `Grad-CAM for lamp`.
        path: PNG file to write.
    """
    pixels = image.permute(1, 2, 0).numpy()
    figure = new_figure(6.4, 3.5, dpi=110)
    figure.set_layout_engine("none")  # fixed places: finding them would take as long as drawing
    heading = _wrapped(title, 46)
    height = 0.92 - 0.075 * (heading.count("\n") + 1)
    left, right = (figure.add_axes((x, 0.03, 0.4, height)) for x in (0.01, 0.43))
    left.imshow(pixels)
    right.imshow(pixels)
    shade: Any = right.imshow(heatmap, cmap="viridis", vmin=0, vmax=1, alpha=OPACITY)
    for axes in (left, right):
        axes.set_axis_off()
    figure.suptitle(heading, fontsize=15, parse_math=False)
    bar: Any = figure.colorbar(shade, figure.add_axes((0.845, 0.12, 0.018, height - 0.18)), ticks=[0, 0.5, 1])
    bar.set_label(_wrapped(label, 26), parse_math=False)
    bar.solids.set(alpha=1)
    save_figure(figure, path)


def _wrapped(text: str, width: int) -> str:
    """Text wrapped to at most three lines of `width` characters."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …"))
