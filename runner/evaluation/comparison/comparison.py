"""A comparison of runs as values: settings, final metrics, curves, and McNemar's tests on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runner.evaluation.metrics import metric_of
from runner.evaluation.significance import ALPHA, McNemarResult

Point = tuple[int, float]
"""Epoch and value."""
Direction = Literal["maximize", "minimize"]

MINIMIZED = ("ece",)
"""Last parts of the names of logged values that should be small, besides those in `METRICS`."""
ORDER = ("objective", "test/best/", "test/last/", "test/", "val/best/", "best_epoch", "val/", "train/")
"""Prefixes of metrics, the most important first; others follow."""
CURVES = ("val/top1", "val/loss")
"""Metrics whose curves are compared."""


@dataclass(frozen=True)
class ComparedRun:
    """What is compared of a run."""

    run_id: str
    name: str
    experiment: str
    status: str
    began: float
    """Seconds since 1970."""
    seconds: float | None
    """Duration; None while it runs."""
    manifest: str
    """Digest of its images and their splits; empty if unknown."""
    settings: dict[str, str]
    metrics: dict[str, float]
    """Latest value of each metric, by name."""
    curves: dict[str, list[Point]]

    @property
    def short_id(self) -> str:
        """Its label in tables and plots."""
        return self.run_id[:8]

    @property
    def epochs(self) -> int:
        """The last epoch with a validation; 0 without any."""
        return max((step for points in self.curves.values() for step, _ in points), default=0)


@dataclass(frozen=True)
class MetricRow:
    """A metric of all runs."""

    name: str
    values: tuple[float | None, ...]
    """None for runs without it."""
    best: frozenset[int]
    """Indices of the runs with the best value; empty if all are the same, or if no direction is better."""


@dataclass(frozen=True)
class PairedTest:
    """McNemar's test of a run against the reference."""

    run: ComparedRun
    result: McNemarResult | None
    """None if the runs cannot be tested."""
    problem: str = ""
    """Why they cannot be tested."""
    p: float = 1.0
    """P-value with Holm's correction for the number of tests."""

    @property
    def significant(self) -> bool:
        """Whether the difference is significant, considering all tests of the comparison."""
        return self.result is not None and self.p <= ALPHA


@dataclass(frozen=True)
class Comparison:
    """All that is compared. The first run is the reference."""

    title: str
    runs: Sequence[ComparedRun]
    metrics: Sequence[MetricRow]
    tests: Sequence[PairedTest]
    """Of each run but the reference."""
    notes: Sequence[str]
    """What a reader should know, as sentences without a period."""

    @property
    def reference(self) -> ComparedRun:
        """The run that the others are compared with."""
        return self.runs[0]


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str | None]]:
    """The settings that differ, by name: the value of each run, None if it has none."""
    names = sorted({name for run in runs for name in run.settings})
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def runs_with_same_settings(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Groups of runs with the same settings, unless one group has all runs."""
    groups: dict[tuple[tuple[str, str], ...], list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(sorted(run.settings.items())), []).append(run)
    return [group for group in groups.values() if 1 < len(group) < len(runs)]


def metric_rows(runs: Sequence[ComparedRun], objective: Direction | None = None) -> list[MetricRow]:
    """The metrics of the runs, the most important first, with the best values.

    Args:
        runs: At least one.
        objective: Direction of the metric `objective` of a study's trials.
    """
    rows = []
    for name in sorted({name for run in runs for name in run.metrics}, key=_order):
        values = tuple(run.metrics.get(name) for run in runs)
        direction = objective if name == "objective" else direction_of(name)
        sign = {"maximize": 1, "minimize": -1, None: 0}[direction]
        finite = [sign * value for value in values if value is not None and math.isfinite(value)]
        best = frozenset(
            index
            for index, value in enumerate(values)
            if sign and len(set(finite)) > 1 and value is not None and sign * value == max(finite)
        )
        rows.append(MetricRow(name, values, best))
    return rows


def direction_of(name: str) -> Direction | None:
    """The better direction of a logged metric such as `test/best/top1`; None if there is none."""
    if (metric := metric_of(name)) is not None:
        return metric.direction
    return "minimize" if name.rpartition("/")[2] in MINIMIZED else None


def _order(name: str) -> tuple[int, str]:
    matching = (index for index, prefix in enumerate(ORDER) if name.startswith(prefix))
    return next(matching, len(ORDER)), name
