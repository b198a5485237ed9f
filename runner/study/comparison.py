"""The comparison of best and baseline, seed by seed: differences, their intervals, and the verdict."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from runner.evaluation.metrics import METRICS
from runner.utils.intervals import PairedDifference, paired_difference

Results: TypeAlias = dict[str, float]
"""Metrics of one training: `val/top1`, `test/loss`, …"""
DECIDING_METRIC = "test/top1"
SPLITS = {"val": "validation", "test": "test"}


@dataclass(frozen=True)
class Comparison:
    """Results of best and baseline, one for each seed, in the same order."""

    best: list[Results]
    baseline: list[Results]
    is_same: bool
    """Whether the best experiment is the baseline."""

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(self.best)

    @property
    def verdict(self) -> str:
        """The conclusion, in one or two sentences."""
        if self.is_same:
            return "No gain: the baseline is the best experiment."
        difference = self.difference(DECIDING_METRIC)
        points = f"{_points(difference.mean)} pt test {METRICS['top1'].label}"
        if self.seeds < 2:
            return f"No significant gain: {points} (one seed, so no interval). Keep the baseline."
        interval = f"95 % CI {_points(difference.low)} to {_points(difference.high)}"
        if not difference.significant:
            return f"No significant gain: {points} ({interval}). Keep the baseline."
        if difference.mean > 0:
            return f"Significant gain: {points} ({interval}). Use the best experiment."
        return f"Significant loss: {points} ({interval}). Keep the baseline."

    def difference(self, metric: str) -> PairedDifference:
        """Best minus baseline, paired by seed."""
        return paired_difference(self.values("best", metric), self.values("baseline", metric))

    def values(self, side: str, metric: str) -> list[float]:
        """A metric of "best" or "baseline" for each seed."""
        return [results[metric] for results in getattr(self, side)]

    def rows(self) -> Iterator[tuple[str, ...]]:
        """For each split and metric: what it is, baseline, best, difference and its interval."""
        for split, split_label in SPLITS.items():
            for name, metric in METRICS.items():
                key = f"{split}/{name}"
                difference = self.difference(key)
                yield (
                    f"{split_label} {metric.label}",
                    _mean_and_sd(self.values("baseline", key)),
                    _mean_and_sd(self.values("best", key)),
                    f"{difference.mean:+.4f}",
                    f"[{difference.low:+.4f}, {difference.high:+.4f}]"
                    if self.seeds > 1
                    else "none for one seed",
                )

    def metrics(self) -> dict[str, float]:
        """Means and differences, to be logged: `confirm/test/top1/difference`."""
        logged: dict[str, float] = {}
        for key in (f"{split}/{name}" for split in SPLITS for name in METRICS):
            difference = self.difference(key)
            for side in ("best", "baseline"):
                logged[f"confirm/{key}/{side}"] = statistics.fmean(self.values(side, key))
            logged[f"confirm/{key}/difference"] = difference.mean
            if self.seeds > 1:
                logged[f"confirm/{key}/difference_low"] = difference.low
                logged[f"confirm/{key}/difference_high"] = difference.high
        return logged

    def to_json(self) -> str:
        """Results of each seed, and the verdict."""
        return json.dumps({"best": self.best, "baseline": self.baseline, "verdict": self.verdict}, indent=1)


def _points(share: float) -> str:
    """A share as signed percentage points, with a minus sign: `−0.50`."""
    return f"{100 * share:+.2f}".replace("-", "−")


def _mean_and_sd(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{deviation}"
