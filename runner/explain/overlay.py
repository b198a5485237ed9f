"""Pictures of an image with the map of a class: side by side, with what was said of it."""

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
    """What stands above a picture: `✓ lamp, 98 %` or `✗ lamp, 61 %, true: cup`; without a true class no mark."""
    said = f"{predicted}, {100 * probability:.0f} %"
    if true is None:
        return said
    return f"✓ {said}" if predicted == true else f"✗ {said}, true: {true}"


def draw(view: Tensor, found: np.ndarray, above: str, about: str, path: Path) -> None:
    """Draw an image beside its overlay, with a colour bar.

    Args:
        view: 3 × h × w, uint8: what the network saw.
        found: h × w in [0, 1].
        above: The title.
        about: What the map shows, for the colour bar: `Grad-CAM for lamp`.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    image = view.permute(1, 2, 0).numpy()
    figure = Figure(figsize=(6.4, 3.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    left.imshow(image)
    right.imshow(image)
    shade: Any = right.imshow(found, cmap="viridis", vmin=0, vmax=1, alpha=OPACITY)
    for axes in (left, right):
        axes.set_axis_off()
    figure.suptitle(_folded(above, 46), fontsize=15, parse_math=False)
    bar: Any = figure.colorbar(shade, ax=right, shrink=0.85, ticks=[0, 0.5, 1])
    bar.set_label(_folded(about, 26), parse_math=False)
    bar.solids.set(alpha=1)
    with atomic_write(path) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # the font may lack a script: boxes in its place
        figure.savefig(aside, format="png")


def _folded(text: str, width: int) -> str:
    """Text in at most three lines of so many characters."""
    return "\n".join(textwrap.wrap(text, width, max_lines=3, placeholder=" …"))
