"""A comparison as rows of text and sentences, for terminal and page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import TypeAlias

from runner.evaluation.comparison.values import FALLING, RISING, Figure, Match, Seen, differing
from runner.evaluation.significance import LEVEL
from runner.utils.console import format_duration

Table: TypeAlias = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Header and rows."""

WIDEST = 60
"""Characters of a value that a table shows; the CSV files hold it whole."""
ABSENT = "–"


def printable(text: str) -> str:
    """A name that any terminal takes: bytes that are no UTF-8 become question marks, line breaks spaces."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def clipped(text: str, width: int = WIDEST) -> str:
    """A text of at most `width` characters, in one line."""
    line = printable(text)
    return line if len(line) <= width else f"{line[: width - 1]}…"


def number(name: str, value: float | None, sign: bool = False) -> str:
    """A metric's value for a person; `sign`: with + or -."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return str(value)
    plus = "+" if sign else ""
    if name.rpartition("/")[2] in (*RISING, *FALLING) or name == "objective":
        return f"{value:{plus}.4f}"
    return f"{value:{plus},.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:{plus}.4g}"


def about_rows(runs: Sequence[Seen]) -> Table:
    """Header and rows of what the runs are."""
    header = ("run", "experiment", "state", "begun", "took", "epochs", "name")
    rows = [
        (
            run.short,
            clipped(run.experiment, 30),
            run.status.lower(),
            f"{datetime.fromtimestamp(run.began).astimezone():%Y-%m-%d %H:%M %Z}",
            ABSENT if run.seconds is None else format_duration(run.seconds),
            str(run.epochs or ABSENT),
            clipped(run.name, 120),
        )
        for run in runs
    ]
    return header, rows


def settings_rows(runs: Sequence[Seen]) -> Table:
    """Header and rows of the settings that differ, a column a run."""
    rows = [
        (name, *(ABSENT if value is None else clipped(value) for value in _rounded(values)))
        for name, values in differing(runs).items()
    ]
    return ("setting", *(run.short for run in runs)), rows


def _rounded(values: Sequence[str | None]) -> list[str | None]:
    """Values of a setting, numbers rounded to six digits where they stay apart: 0.15000000000000002 hides others."""
    short: list[str | None] = []
    for value in values:
        try:
            short.append(value if value is None or len(value) < 10 else f"{float(value):.6g}")
        except ValueError:
            short.append(value)
    return short if len(set(short)) == len(set(values)) else list(values)


def figures_rows(runs: Sequence[Seen], found: Sequence[Figure]) -> Table:
    """Header and rows of the metrics, best values marked; the difference of two runs. The machine's use is left out."""
    rows = []
    for each in found:
        if each.name.startswith("system/"):
            continue
        cells = [
            ("* " if place in each.best else "") + number(each.name, value)
            for place, value in enumerate(each.values)
        ]
        if len(runs) == 2:
            first, second = each.values
            known = first is not None and second is not None
            cells.append(number(each.name, second - first, sign=True) if known else ABSENT)  # type: ignore[operator]
        rows.append((clipped(each.name, 40), *cells))
    extra = ("difference",) if len(runs) == 2 else ()
    return ("metric", *(run.short for run in runs), *extra), rows


def match_rows(matches: Sequence[Match]) -> Table:
    """Header and rows of the paired test; differences in points of top-1."""
    several = len(matches) > 1
    header = ("run", "images", "only first", "only it", "difference", "95 % interval", "p")
    rows = []
    for match in matches:
        it = match.result
        if it is None:
            fault = match.fault.removeprefix(f"{match.run.short} has ")  # the row says whose it is
            rows.append((match.run.short, *[ABSENT] * (6 + several), fault))
            continue
        interval = f"{_points(it.interval[0])} to {_points(it.interval[1])}" if it.interval else ABSENT
        corrected = (_p(match.p),) if several else ()
        verdict = word(match) if match.certain else "not certain"
        counts = (f"{it.images:,}", f"{it.first:,}", f"{it.second:,}")
        rows.append(
            (match.run.short, *counts, _points(it.difference), interval, _p(it.p), *corrected, verdict)
        )
    return (*header, *(("p (Holm)",) if several else ()), "verdict"), rows


def class_rows(first: Seen, match: Match) -> Table:
    """Header and rows of the classes in which most was won or lost; none where nothing was tested."""
    classes = match.result.classes if match.result else ()
    rows = [
        (clipped(each.label, 40), str(each.first), str(each.second), f"{each.second - each.first:+}")
        for each in classes
    ]
    return ("class", f"only {first.short}", f"only {match.run.short}", "net"), rows


def verdict(first: Seen, match: Match) -> str:
    """What came of a run against the first, in one sentence."""
    it = match.result
    if it is None:
        return f"{match.run.short} could not be tested against {first.short}: {match.fault}."
    interval = (
        f", 95 % interval {_points(it.interval[0])} to {_points(it.interval[1])}" if it.interval else ""
    )
    certain = "certain" if match.certain else "not certain"
    p = f"p = {_p(match.p)}".replace("= <", "<") + (", corrected" if match.p != it.p else "")
    return (
        f"{match.run.short} has {_points(it.difference)} points of test top-1 over {first.short} on the {it.images:,}"
        f" images of both{interval}; McNemar's test: {certain} at {100 * LEVEL:.0f} % ({p})."
    )


def summary(first: Seen, matches: Sequence[Match]) -> str:
    """What came of all runs against the first, in a sentence; nothing where none could be tested."""
    if not any(match.result for match in matches):
        return ""
    if len(matches) == 1:
        return verdict(first, matches[0])
    sides: dict[str, list[str]] = {"better": [], "worse": [], "not certainly different": [], "not tested": []}
    for match in matches:
        sides[word(match)].append(match.run.short)
    said = "; ".join(f"{name}: {', '.join(side)}" for name, side in sides.items() if side)
    return f"Against {first.short} on the same test images (certain at {100 * LEVEL:.0f} %): {said}."


def word(match: Match) -> str:
    """How a run does against the first, in a word or three."""
    if match.result is None:
        return "not tested"
    if not match.certain:
        return "not certainly different"
    return "better" if match.result.difference > 0 else "worse"


def _points(share: float) -> str:
    return f"{100 * share:+.2f}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 1e-4 else "< 0.0001"
