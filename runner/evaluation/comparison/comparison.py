"""A comparison of runs as values: settings, final metrics, curves, and McNemar's tests on the same images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runner.config.identity import Identity
from runner.evaluation.metrics import metric_of
from runner.evaluation.significance import ALPHA, McNemarResult
from runner.utils.csv_text import to_csv

Point = tuple[int, float]
"""Epoch and value."""
Direction = Literal["maximize", "minimize"]

MINIMIZED = ("ece",)
"""Last parts of the names of logged values that should be small, besides those in `METRICS`."""
ORDER = ("objective", "test/best/", "test/last/", "test/", "val/best/", "best_epoch", "val/", "train/")
"""Prefixes of metrics, the most important first; others follow."""
CURVES = ("val/top1", "val/loss")
"""Metrics whose curves are compared."""
RUN_FIELDS = ("name", "experiment", "status", "began", "seconds", "epochs")
"""What the JSON output says of a run, besides its id."""


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
    identity: Identity
    """Of its experiment."""
    settings: dict[str, str]
    metrics: dict[str, float]
    """Latest value of each metric, by name."""
    curves: dict[str, list[Point]]
    fold: str = ""
    """The split that a fold is, test or val, if the run is a cross-validation."""
    seeds: int = 1
    """Training seeds whose mean probabilities its predictions are."""

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
    classes: int = 0
    """Classes of the models; 0: not known."""

    @property
    def reference(self) -> ComparedRun:
        """The run that the others are compared with."""
        return self.runs[0]


def image_kind(runs: Sequence[ComparedRun]) -> str:
    """What images the predictions of runs are of, before "image": `test `, `validation-fold `, or empty for both."""
    validation = [run.fold == "val" for run in runs]
    if not any(validation):
        return "test "
    return "validation-fold " if all(validation) else ""


def all_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str | None]]:
    """The settings by name: the value of each run, None if it has none."""
    names = sorted({name for run in runs for name in run.settings})
    return {name: [run.settings.get(name) for run in runs] for name in names}


def differing_settings(runs: Sequence[ComparedRun]) -> dict[str, list[str | None]]:
    """The settings that differ, like `all_settings`."""
    return {name: values for name, values in all_settings(runs).items() if len(set(values)) > 1}


def runs_of_same_experiment(runs: Sequence[ComparedRun]) -> list[list[ComparedRun]]:
    """Groups of runs of the same experiment, unless one group has all runs."""
    groups: list[list[ComparedRun]] = []
    for run in runs:
        group = next((group for group in groups if not group[0].identity.changes(run.identity)), None)
        groups.append([run]) if group is None else group.append(run)
    return [group for group in groups if 1 < len(group) < len(runs)]


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


def settings_to_csv(runs: Sequence[ComparedRun]) -> str:
    """All settings, one column per run, and whether they differ."""
    rows = [
        (name, "yes" if len(set(values)) > 1 else "no", *values)
        for name, values in all_settings(runs).items()
    ]
    return to_csv(("setting", "differs", *(run.run_id for run in runs)), rows)


def metrics_to_csv(runs: Sequence[ComparedRun], metrics: Sequence[MetricRow]) -> str:
    """All metrics, one column per run."""
    rows = [(row.name, *row.values) for row in metrics]
    return to_csv(("metric", *(run.run_id for run in runs)), rows)


def to_json(comparison: Comparison, folder: Path, artifacts: str | None) -> dict[str, Any]:
    """The comparison as JSON values; numbers that are not finite are null.

    Args:
        comparison: What to convert.
        folder: Where its files are.
        artifacts: Where they are in the reference run in MLflow; None: nowhere.
    """
    runs = comparison.runs
    ids = [run.run_id for run in runs]
    differing = differing_settings(runs)
    return {
        "runs": [{"run": run.run_id, **{name: getattr(run, name) for name in RUN_FIELDS}} for run in runs],
        "settings": {
            "differing": {name: dict(zip(ids, values, strict=True)) for name, values in differing.items()},
            "same": len(all_settings(runs)) - len(differing),
        },
        "metrics": {
            row.name: {
                "values": dict(zip(ids, map(_finite, row.values), strict=True)),
                "best": [ids[index] for index in sorted(row.best)],
            }
            for row in comparison.metrics
        },
        "paired": [_test_to_json(ids[0], test) for test in comparison.tests],
        "notes": list(comparison.notes),
        "folder": str(folder),
        "artifacts": artifacts,
    }


def _test_to_json(reference: str, test: PairedTest) -> dict[str, Any]:
    pair = {"run": test.run.run_id, "reference": reference}
    result = test.result
    if result is None:
        return {**pair, "problem": test.problem}
    return {
        **pair,
        "images": result.images,
        "left_out": result.left_out,
        "only_reference": result.only_first,
        "only_run": result.only_second,
        "difference": result.difference,
        "interval": result.interval,
        "p": result.p,
        "p_holm": test.p,
        "significant": test.significant,
        "classes": [
            {"class": row.name, "only_reference": row.only_first, "only_run": row.only_second}
            for row in result.classes
        ],
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
