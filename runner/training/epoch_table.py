"""The epochs of a training as rows of a table that are printed one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from runner.evaluation.metrics import Metric, Scores
from runner.training.results import EpochResult
from runner.utils.console import format_duration

BEST, LR_REDUCED = "best", ", lr reduced"
"""Marks after the last column; the second one only where there is room."""


@dataclass(frozen=True)
class _Column:
    """A column.

    Args:
        header: Its words stand below each other.
        cell: Its value in an epoch's row.
        least: Least width.
    """

    header: str
    cell: Callable[[EpochResult], str]
    least: int

    @property
    def width(self) -> int:
        return max(self.least, *map(len, self.header.split()))


class EpochTable:
    """Header and rows of fixed columns, with as many validation metrics as fit.

    Args:
        scores: Of the first epoch: the metrics to choose from.
        best: Name of the metric that selects the best epoch; it is always shown.
        width: Columns of the terminal. The table needs 79 at most, whatever the metrics.
    """

    def __init__(self, scores: Scores, best: str, width: int) -> None:
        always = ("loss", "top1", best)
        names = [metric.name for metric in scores.shown if metric.name in always]
        self._gap = 2
        if self._width(self._choose(scores, names)) > width:
            self._gap = 1
        for metric in scores.shown:
            if metric.name not in names and self._width(self._choose(scores, [*names, metric.name])) <= width:
                names.append(metric.name)
        self._columns = self._choose(scores, names)
        self._marks_lr = self._width(self._columns) + len(LR_REDUCED) <= width

    def header(self) -> list[str]:
        """The lines of the header."""
        words = [column.header.split() for column in self._columns]
        lines = max(map(len, words))
        padded = [[""] * (lines - len(each)) + each for each in words]
        return [self._join([each[line] for each in padded]).rstrip() for line in range(lines)]

    def row(self, result: EpochResult) -> str:
        """The row of an epoch."""
        marks = BEST * result.best + LR_REDUCED * (result.lr_reduced and self._marks_lr)
        return (
            f"{self._join([column.cell(result) for column in self._columns])} {marks.lstrip(', ')}".rstrip()
        )

    def _join(self, cells: list[str]) -> str:
        widths = [column.width for column in self._columns]
        return (" " * self._gap).join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))

    def _width(self, columns: list[_Column]) -> int:
        return sum(column.width + self._gap for column in columns) - self._gap + 1 + len(BEST)

    @staticmethod
    def _choose(scores: Scores, names: list[str]) -> list[_Column]:
        """All columns, with the validation metrics of these names."""
        metrics = sorted(
            (m for m in scores.shown if m.name in names), key=lambda metric: metric.name != "loss"
        )
        return [
            _Column("epoch", lambda epoch: str(epoch.number), 5),
            _Column("train loss", lambda epoch: _figure(epoch.train_loss), 7),
            _Column("train top-1", lambda epoch: _figure(epoch.train_top1), 6),
            *map(_validation, metrics),
            _Column("lr", lambda epoch: f"{epoch.lr:.2g}", 7),
            _Column("feature time", lambda epoch: _duration(epoch.feature_seconds), 7),
            _Column("train time", lambda epoch: _duration(epoch.seconds - epoch.feature_seconds), 7),
        ]


def _validation(metric: Metric) -> _Column:
    least = 7 if metric.name == "loss" else 6
    return _Column(f"val {metric.label}", lambda epoch: _figure(epoch.val[metric.name]), least)


def _figure(value: float) -> str:
    """Four decimals, or two digits of a large number: seven characters at most."""
    text = f"{value:.4f}"
    return text if len(text) <= 7 else f"{value:.1e}"


def _duration(seconds: float) -> str:
    """Seven characters at most."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return format_duration(seconds) if seconds < 36_000 else f"{seconds / 3600:.1f} h"
