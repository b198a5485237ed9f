"""Matplotlib figures that are drawn without a display and saved as PNG files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from runner.utils.atomic_files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GRAY = "#0072B2", "#D55E00", "#777777"
"""Colors of all figures: distinguishable for color-blind readers (Okabe & Ito, Color Universal Design, 2008)."""


def new_figure(width: float, height: float, dpi: int = 100) -> Figure:
    """An empty figure of this size in inches. It needs no pyplot, so it holds no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a PNG file, whole or not at all."""
    with atomic_write(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # boxes replace the letters that the font lacks
        figure.savefig(partial, format="png")
