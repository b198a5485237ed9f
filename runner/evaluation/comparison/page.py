"""The picture of a comparison, and its page."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from runner.evaluation.comparison.tables import (
    about_rows,
    class_rows,
    clipped,
    figures_rows,
    match_rows,
    settings_rows,
    summary,
)
from runner.evaluation.comparison.values import Figure, Match, Seen
from runner.utils.atomic_files import atomic_write
from runner.utils.html import Page

COLOURS = ("#000000", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
"""Okabe and Ito's (2008), colour-blind safe, with gray for their yellow, which is lost on white."""
STYLES = ("solid", (0, (5, 2)), (0, (1, 1.3)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "osD^vPX*"
MOST = 8
"""Runs that are drawn: more lines could not be told apart."""
PANELS = (
    ("val/top1", "validation top-1 accuracy (%)", 100.0),
    ("val/loss", "validation loss (nats an image)", 1.0),
)
SPAN = 30.0
"""Ratio of largest to smallest loss from which on the axis is logarithmic: a run that diverged hides the others."""


def draw(runs: Sequence[Seen], title: str, path: Path) -> None:
    """Draw validation accuracy and loss of the first `MOST` runs over epochs.

    Args:
        runs: With their curves; one without any is named as such.
        title: Of the picture.
        path: PNG file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    shown = runs[:MOST]
    lines = (len(shown) + 1) // 2 if len(shown) > 3 else len(shown)
    figure = Canvas(figsize=(11, 4.8 + 0.24 * lines), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.06})
    handles: list[Any] = []
    for axes, (curve, label, scale) in zip(panels, PANELS, strict=True):
        handles = []
        for place, run in enumerate(shown):
            points = run.curves.get(curve, [])
            handles += axes.plot(
                [step for step, _ in points],
                [scale * value for _, value in points],
                color=COLOURS[place],
                linestyle=STYLES[place % len(STYLES)],
                linewidth=1.6,
                marker=MARKERS[place],
                markersize=4,
                markevery=max(1, len(points) // 10),
                label=f"{run.short}  {clipped(run.name, 52)}" + ("" if points else " (no curve)"),
            )
        values = [value for run in shown for _, value in run.curves.get(curve, [])]
        axes.set(xlabel="epoch", ylabel=label)
        if not values:
            axes.text(0.5, 0.5, "no points", ha="center", transform=axes.transAxes)
        elif curve == "val/loss" and min(values) > 0 and max(values) / min(values) > SPAN:
            axes.set(yscale="log", ylabel=f"{label}, log scale")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.03)
        axes.grid(alpha=0.3)
    more = f" (the first {MOST} of {len(runs)} runs)" if len(runs) > MOST else ""
    figure.suptitle(f"{clipped(title, 80)}{more}", parse_math=False)
    legend = figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2 if len(shown) > 3 else 1,
        fontsize=9,
        handlelength=3.5,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    with atomic_write(path) as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in a script that the font lacks
        figure.savefig(aside, format="png")


def page(
    title: str,
    runs: Sequence[Seen],
    found: Sequence[Figure],
    matches: Sequence[Match],
    notes: Sequence[str],
    picture: Path,
) -> Page:
    """The comparison as a page that needs no other file.

    Args:
        title: What is compared.
        runs: The first is what the others are compared with.
        found: Their metrics.
        matches: The others against the first.
        notes: Sentences that a reader should know.
        picture: PNG file of the curves.
    """
    first = runs[0]
    other = "other is" if len(runs) == 2 else "others are"
    now = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    made = Page(
        title, f"{len(runs)} runs, compared on {now}. Run {first.short} is what the {other} compared with."
    )
    if said := summary(first, matches):
        made.text(said)
    for note in notes:
        made.text(f"Note: {note}.")
    made.heading("The runs")
    (*header, _name), rows = about_rows(runs)
    made.table(("name", *header), [(name, *cells) for *cells, name in rows], scroll=len(rows) > 12)
    made.heading("Settings that differ")
    settings_header, settings = settings_rows(runs)
    if settings:
        made.table(settings_header, settings, scroll=len(settings) > 15 or len(runs) > 6)
    made.text(same_settings(runs))
    made.heading("Curves")
    made.picture(picture, "validation top-1 accuracy and loss of the runs over epochs")
    made.heading("Metrics")
    made.text(
        "Of curves the last point. * marks the best value of a row, where more or less of it is better."
    )
    figures_header, figures = figures_rows(runs, found)
    made.table(figures_header, figures, scroll=len(figures) > 40 or len(runs) > 6)
    made.heading(f"The same test images, against {first.short}")
    if any(match.result for match in matches):
        made.table(*match_rows(matches), scroll=len(matches) > 12)
    made.text(explanation(matches))
    for match in matches:
        class_header, classes = class_rows(first, match)
        if classes:
            made.heading(f"By class: {match.run.short} against {first.short}")
            made.text("Images that one run alone got right, in the classes where most was won or lost.")
            made.table(class_header, classes)
    return made


def same_settings(runs: Sequence[Seen]) -> str:
    """How many settings all runs share, in a sentence."""
    rows = len(settings_rows(runs)[1])
    names = len({name for run in runs for name in run.settings})
    if not names:
        return "No settings are recorded with these runs."
    if not rows:
        return f"The runs have identical settings, all {names}."
    return f"{names - rows} of {names} settings are the same and left out."


def explanation(matches: Sequence[Match]) -> str:
    """How the table of the paired test is to be read; why there is none, where there is none."""
    if not any(match.result for match in matches):
        faults = dict.fromkeys(match.fault for match in matches)
        return f"The runs' predictions could not be compared: {'; '.join(faults)}."
    several = len(matches) > 1
    return (
        "only first, only it: test images that one run got right and the other missed. difference: points of top-1"
        " over the first run, with its 95 % Wald interval (Agresti 2013, §11.1)"
        + (", each for itself" if several else "")
        + ". p: McNemar's exact test, two-sided"
        + ("; corrected for the number of runs after Holm (1979). " if several else ". ")
        + "The verdict goes by p at 5 %. It tells whether these two networks differ on images like these; another fit"
        " seed gives another network."
    )
