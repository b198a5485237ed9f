"""Draws an image beside its class activation map."""

from __future__ import annotations

import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from runner.utils.atomic_files import atomic_write

OPACITY = 0.55


def title(predicted: str, probability: float, true: str | None = None) -> str:
    """A picture's title: `✓ lamp, 98 %` or `✗ lamp, 61 %, true: cup`; no mark if the true class is unknown."""
    prediction = f"{predicted}, {100 * probability:.0f} %"
    if true is None:
        return prediction
    return f"✓ {prediction}" if predicted == true else f"✗ {prediction}, true: {true}"


def draw(image: Tensor, found: np.ndarray, title: str, label: str, path: Path) -> None:
    """Draw an image and, beside it, the image under its map, with a color bar.

    Args:
        image: 3 × h × w, uint8, as the model sees it.
        found: The map, h × w in [0, 1].
        title: Title of the picture.
        label: Label of the color bar, such as `Grad-CAM for lamp`.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    pixels = image.permute(1, 2, 0).numpy()
    figure = Figure(figsize=(6.4, 3.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(pixels)
    right.imshow(pixels)
    shade: Any = right.imshow(found, cmap="viridis", vmin=0, vmax=1, alpha=OPACITY)
    for axes in (left, right):
        axes.set_axis_off()
    figure.suptitle(_wrapped(title, 46), fontsize=15, parse_math=False)
    bar: Any = figure.colorbar(shade, ax=right, shrink=0.85, ticks=[0, 0.5, 1])
    bar.set_label(_wrapped(label, 26), parse_math=False)
    bar.solids.set(alpha=1)
    with atomic_write(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a font without the script draws boxes
        figure.savefig(partial, format="png")


def _wrapped(text: str, width: int) -> str:
    """Text wrapped to at most three lines of `width` characters."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …"))
