"""The files of a comparison: a plot of the curves, CSV tables, and an HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.evaluation import html
from runner.evaluation.comparison import tables
from runner.evaluation.comparison.comparison import (
    CURVES,
    ComparedRun,
    Comparison,
    metrics_to_csv,
    settings_to_csv,
)
from runner.utils.atomic_files import write_text
from runner.utils.figures import new_figure, save_figure
from runner.utils.text import one_line

COLORS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
"""Palette of Okabe and Ito (2008) for color-blind readers, with gray instead of yellow, which is faint on white."""
LINE_STYLES = ("solid", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vPX*"
MOST_CURVES = 8
"""Maximum number of runs in a plot; more lines would look alike."""
AXIS_LABELS = {"val/top1": "validation top-1 accuracy (%)", "val/loss": "validation loss (nats per image)"}
LOG_RATIO = 30.0
"""Ratio of the largest to the smallest loss above which the axis is logarithmic, so that a diverged run does not hide
the others."""


def draw_curves(runs: Sequence[ComparedRun], title: str, path: Path) -> None:
    """Draw validation accuracy and loss of the first `MOST_CURVES` runs over epochs.

    Args:
        runs: The runs; the legend says which have no curve.
        title: Title of the figure.
        path: PNG file to write.
    """
    shown = runs[:MOST_CURVES]
    columns = 2 if len(shown) > 3 else 1
    figure = new_figure(11, 4.8 + 0.24 * math.ceil(len(shown) / columns), dpi=120)
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    for axes, curve in zip(panels, CURVES, strict=True):
        handles = _draw_panel(axes, curve, shown)
    more = f" (the first {MOST_CURVES} of {len(runs)} runs)" if len(runs) > MOST_CURVES else ""
    figure.suptitle(f"{one_line(title, 80)}{more}", parse_math=False)
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, fontsize=9, handlelength=3.5
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def _draw_panel(axes: Any, curve: str, runs: Sequence[ComparedRun]) -> list[Any]:
    """Draw one metric of all runs; returns the lines."""
    from matplotlib.ticker import MaxNLocator

    scale = 100.0 if curve == "val/top1" else 1.0
    handles: list[Any] = []
    for index, run in enumerate(runs):
        points = run.curves.get(curve, [])
        handles += axes.plot(
            [step for step, _ in points],
            [scale * value for _, value in points],
            color=COLORS[index],
            linestyle=LINE_STYLES[index % len(LINE_STYLES)],
            linewidth=1.6,
            marker=MARKERS[index],
            markersize=4,
            markevery=max(1, len(points) // 10),
            label=f"{run.short_id}  {one_line(run.name, 52)}" + ("" if points else " (no curve)"),
        )
    label = AXIS_LABELS[curve]
    axes.set(xlabel="epoch", ylabel=label)
    values = [value for run in runs for _, value in run.curves.get(curve, [])]
    if not values:
        axes.text(0.5, 0.5, "no points", ha="center", transform=axes.transAxes)
    elif curve == "val/loss" and min(values) > 0 and max(values) / min(values) > LOG_RATIO:
        axes.set(yscale="log", ylabel=f"{label}, log scale")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0.03)
    axes.grid(alpha=0.3)
    return handles


def write_files(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the plot, the tables, and the HTML page, which needs no other file; returns the files."""
    curves, settings, metrics, page = files = [
        folder / name for name in ("curves.png", "settings.csv", "metrics.csv", "comparison.html")
    ]
    draw_curves(comparison.runs, comparison.title, curves)
    write_text(settings, settings_to_csv(comparison.runs))
    write_text(metrics, metrics_to_csv(comparison.runs, comparison.metrics))
    html.write_page(
        page,
        "comparison.html.jinja",
        title=comparison.title,
        comparison=comparison,
        tables=tables,
        curves=curves,
        now=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
    )
    return files
