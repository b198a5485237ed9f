"""What is compared of runs, as values: settings, final metrics, curves, predictions on the same images."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from runner.evaluation.significance import LEVEL, Paired

Point = tuple[int, float]
"""Epoch and value."""

RISING = ("top1", "top5", "balanced_accuracy")
"""Last parts of the names of metrics of which more is better."""
FALLING = ("loss", "ece")
"""Of which less is better."""
ORDER = ("objective", "test/best/", "test/last/", "test/", "val/best/", "best_epoch", "val/", "train/")
"""Beginnings of names of metrics, the most telling first; others follow."""


@dataclass(frozen=True)
class Seen:
    """A run, as far as it is compared. `began` is in s since 1970, `seconds` None while it runs."""

    run_id: str
    name: str
    experiment: str
    status: str
    began: float
    seconds: float | None
    manifest: str
    """Digest of its images and their splits; empty where it is not known."""
    settings: dict[str, str]
    metrics: dict[str, float]
    """Name → latest value."""
    curves: dict[str, list[Point]]

    @property
    def short(self) -> str:
        """What tables call it."""
        return self.run_id[:8]

    @property
    def epochs(self) -> int:
        """The last epoch that it was validated after; 0 where there was none."""
        return max((step for points in self.curves.values() for step, _ in points), default=0)


@dataclass(frozen=True)
class Figure:
    """A metric of all runs; None where a run has none. `best` holds the places of the best values."""

    name: str
    values: tuple[float | None, ...]
    best: frozenset[int]


@dataclass(frozen=True)
class Match:
    """A run against the first: what came of it, or why it could not be tested; `p` is Holm's."""

    run: Seen
    result: Paired | None
    fault: str = ""
    p: float = 1.0

    @property
    def certain(self) -> bool:
        """Whether the difference is more than luck, all runs that are tested against the first considered."""
        return self.result is not None and self.p <= LEVEL


def differing(runs: Sequence[Seen]) -> dict[str, list[str | None]]:
    """The settings that are not the same in all runs, by name: each run's value, None where it has none."""
    names = sorted({name for run in runs for name in run.settings})
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: each for name, each in values.items() if len(set(each)) > 1}


def twins(runs: Sequence[Seen]) -> list[list[Seen]]:
    """Groups of two or more runs whose settings are the same, if not all are."""
    groups: dict[tuple[tuple[str, str], ...], list[Seen]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    return [group for group in groups.values() if 1 < len(group) < len(runs)]


def figures(runs: Sequence[Seen], falling: Iterable[str] = (), rising: Iterable[str] = ()) -> list[Figure]:
    """The metrics of the runs, the most telling first, the best value of each marked where there is one.

    Args:
        runs: At least one.
        falling: Further names of metrics of which less is better.
        rising: Of which more is.
    """
    names = sorted({name for run in runs for name in run.metrics}, key=_place)
    found = []
    for name in names:
        values = tuple(run.metrics.get(name) for run in runs)
        last = name.rpartition("/")[2]
        sign = (last in RISING or name in rising) - (last in FALLING or name in falling)
        finite = [sign * value for value in values if value is not None and math.isfinite(value)]
        best = frozenset(
            place
            for place, value in enumerate(values)
            if sign and len(set(finite)) > 1 and value is not None and sign * value == max(finite)
        )
        found.append(Figure(name, values, best))
    return found


def _place(name: str) -> tuple[int, str]:
    first = (place for place, beginning in enumerate(ORDER) if name.startswith(beginning))
    return next(first, len(ORDER)), name
