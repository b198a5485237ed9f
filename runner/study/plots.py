"""Plots of a study, and the table of its trials."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from runner.evaluation.metrics import METRICS
from runner.study.scales import MAX_TICKS, is_log, is_number, scale
from runner.study.trials import is_baseline, state_name
from runner.utils.atomic_files import atomic_write
from runner.utils.csv_text import to_csv
from runner.utils.figures import BLUE, GRAY, ORANGE, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PathCollection
    from matplotlib.figure import Figure

DPI = 110
MAX_COLUMNS = 4
"""Slice plots in a row."""
GRID = 300
"""Points of a contour plot in each direction."""
EQUAL = 1e-9
"""Values that differ by no more are the same."""
FEW_TRIALS = 10
"""With fewer complete trials, or fewer than settings, importances are noise."""


def trials_csv(trials: Sequence[FrozenTrial], settings: Sequence[str]) -> str:
    """The trials as CSV: number, state, value, seconds, searched settings, validation metrics, run, and reason."""
    metrics = [f"val/{name}" for name in METRICS]
    header = ["trial", "state", "value", "baseline", "seconds", *settings, *metrics, "run", "reason"]
    return to_csv(header, (_row(trial, settings) for trial in trials))


def _row(trial: FrozenTrial, settings: Sequence[str]) -> list[Any]:
    attributes = trial.user_attrs
    scores = attributes.get("scores", {})
    return [
        trial.number,
        state_name(trial),
        "" if trial.value is None else repr(trial.value),
        "yes" if is_baseline(trial) else "",
        f"{attributes['seconds']:.2f}" if "seconds" in attributes else "",
        *(trial.params.get(name, "") for name in settings),
        *(scores.get(name, "") for name in METRICS),
        attributes.get("run", ""),
        attributes.get("lost") or attributes.get("reason", ""),
    ]


def why_unknown(study: optuna.Study) -> str:
    """Why the importance of settings is unknown; empty if it can be computed from the complete trials."""
    trials = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    if len(trials) < max(FEW_TRIALS, len({name for trial in trials for name in trial.params})):
        return "too few"
    return "all have the same value" if _are_equal(trials) else ""


def _are_equal(trials: Sequence[FrozenTrial]) -> bool:
    values = [trial.value for trial in trials if trial.value is not None]
    return not values or max(values) - min(values) <= EQUAL


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the value's variation each setting explains (PED-ANOVA), the largest first.

    Empty if it is unknown. Source: S. Watanabe et al., PED-ANOVA, IJCAI 2023.
    """
    if why_unknown(study):
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (ValueError, RuntimeError):
            return {}


@dataclass(frozen=True)
class StudyPlots:
    """Draws the plots of a study.

    Args:
        study: The study.
        name: Its name, for titles.
        label: Label of its values.
    """

    study: optuna.Study
    name: str
    label: str

    @cached_property
    def complete(self) -> list[FrozenTrial]:
        """The complete trials."""
        return [trial for trial in self.study.trials if trial.state == TrialState.COMPLETE]

    @cached_property
    def settings(self) -> list[str]:
        """Settings that several complete trials have, the most important first if that is known."""
        distributions = {
            name: each
            for trial in self.complete
            for name, each in trial.distributions.items()
            if not each.single()
        }
        names = importances(self.study) or distributions
        return [name for name in names if sum(name in trial.params for trial in self.complete) > 1]

    @cached_property
    def span(self) -> tuple[float, float]:
        """The values to show; those more than five times as far from the best as the median are not."""
        values = sorted(trial.value or 0.0 for trial in self.complete)
        low, median, high = values[0], values[len(values) // 2], values[-1]
        if self.study.direction == StudyDirection.MAXIMIZE:
            return (max(low, high - 5 * (high - median)), high) if high > median else (low, high)
        return (low, min(high, low + 5 * (median - low))) if median > low else (low, high)

    def save_all(self, folder: Path) -> list[Path]:
        """Save history, importances, slices, parallel coordinates, and contours of the two most important numbers.

        Returns the files. Plots that need more trials, or that Optuna cannot draw, are left out.
        """
        import matplotlib

        matplotlib.use("agg")
        files = []
        for name, draw in self._plots():
            # Optuna sets a matplotlib style for the whole process: its gray background would stay for later
            # plots.
            with matplotlib.rc_context(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    figure = draw()
                except (ValueError, RuntimeError):  # as for a setting that never varied
                    continue
                files.append(folder / f"{name}.png")
                save_figure(figure, files[-1])
        return files

    def save_interactive(self, path: Path) -> bool:
        """Save interactive parallel coordinates as one self-contained HTML file.

        Returns False, and saves nothing, if there are too few trials or all have the same value.
        """
        if sum(bool(trial.params) for trial in self.complete) < 3 or _are_equal(self.complete):
            return False
        figure = optuna.visualization.plot_parallel_coordinate(self.study, target_name=self.label)
        with atomic_write(path) as page:
            page.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
        return True

    def _plots(self) -> Iterator[tuple[str, Callable[[], Figure]]]:
        if self.complete:
            yield "history", self.history
            if shares := importances(self.study):
                yield "importances", partial(self.importance_bars, shares)
        if len(self.complete) > 2 and self.settings:
            yield "slices", self.slices
            if _are_equal(self.complete):
                return
            yield "parallel_coordinates", self.parallel_coordinates
            numbers = [name for name in self.settings if is_number(self._distribution(name))]
            if len(numbers) > 1:
                yield "contour", partial(self.contour, *numbers[:2])

    def history(self) -> Figure:
        """Values over trials: complete, pruned, best so far, and the baseline."""
        from matplotlib.ticker import MaxNLocator

        figure = new_figure(9, 5, DPI)
        axes = figure.subplots()
        maximize = self.study.direction == StudyDirection.MAXIMIZE
        complete, pruned = self._values(TrialState.COMPLETE), self._values(TrialState.PRUNED)
        numbers, values = zip(*complete, strict=True)
        axes.scatter(numbers, values, color=BLUE, label="complete")
        if pruned:
            axes.scatter(*zip(*pruned, strict=True), color=GRAY, marker="x", label="pruned (last value)")
        best = list(accumulate(values, max if maximize else min))
        axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
        baseline = next((trial.value for trial in self.complete if is_baseline(trial)), None)
        if baseline is not None:
            axes.axhline(baseline, color=GRAY, linestyle="--", label="baseline")
        axes.set_title(f"{self.name}: {len(self.study.trials)} trials", parse_math=False)
        axes.set(xlabel="trial", ylabel=self.label)
        self._limit(axes)
        clipped = [(number, value, self._clipped(value)) for number, value in complete + pruned]
        if outside := [(number, edge) for number, value, edge in clipped if edge != value]:
            marker = "v" if maximize else "^"
            axes.scatter(*zip(*outside, strict=True), marker=marker, color=GRAY, label="worse, off the scale")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        figure.legend(loc="outside lower center", ncols=5)
        return figure

    def slices(self) -> Figure:
        """Value over each setting. Later trials are darker, a star is the baseline, bad values lie on the edge."""
        from matplotlib.ticker import MaxNLocator

        columns = min(MAX_COLUMNS, len(self.settings))
        rows = -(-len(self.settings) // columns)
        figure = new_figure(3.2 * columns + 1, 3.2 * rows + 0.5, DPI)
        grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
        for axes, setting in zip(grid.flat, self.settings, strict=False):
            points = self._slice(axes, setting)
        for axes in grid.flat[len(self.settings) :]:
            axes.set_visible(False)
        for row in grid:
            row[0].set_ylabel(self.label)
        figure.colorbar(points, ax=list(grid.flat), label="trial", aspect=30, ticks=MaxNLocator(integer=True))
        figure.suptitle(f"{self.name}: {self.label} over each setting (star: baseline)", parse_math=False)
        return figure

    def _slice(self, axes: Axes, setting: str) -> PathCollection:
        trials = [trial for trial in self.complete if setting in trial.params]
        distribution = self._distribution(setting)
        choices = list(distribution.choices) if isinstance(distribution, CategoricalDistribution) else []
        x = [choices.index(trial.params[setting]) if choices else trial.params[setting] for trial in trials]
        y = [self._clipped(trial.value or 0.0) for trial in trials]
        numbers = [trial.number for trial in trials]
        points = axes.scatter(x, y, c=numbers, cmap="viridis_r", edgecolors=GRAY, linewidths=0.5)
        points.set_clim(0, max(trial.number for trial in self.complete))
        for trial, *point in zip(trials, x, y, strict=True):
            if is_baseline(trial):
                axes.plot(*point, marker="*", markersize=14, color=ORANGE, linestyle="none")
        if choices:
            ticks = range(0, len(choices), -(-len(choices) // (2 * MAX_TICKS)))
            texts = [f"{each:g}" if isinstance(each, float) else str(each) for each in choices]
            if sum(len(texts[tick]) for tick in ticks) > 20:
                axes.tick_params("x", rotation=30)
            axes.set_xticks(ticks, [texts[tick] for tick in ticks])
            axes.margins(x=0.12)
        else:
            scale(axes, "x", distribution)
        axes.set_xlabel(setting)
        self._limit(axes)
        axes.grid(alpha=0.3)
        return points

    def importance_bars(self, shares: dict[str, float]) -> Figure:
        """The importance of each setting, the largest on top."""
        figure = new_figure(8, 1.5 + 0.35 * len(shares), DPI)
        axes = figure.subplots()
        bars = axes.barh(list(shares), list(shares.values()), color=BLUE)
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.set_title(f"{self.name}: importance of settings", parse_math=False)
        axes.set_xlabel(f"importance for {self.label} (PED-ANOVA)")
        axes.grid(alpha=0.3, axis="x")
        return figure

    def contour(self, first: str, second: str) -> Figure:
        """Value over two settings that are numbers, interpolated between trials (points).

        Trials with equal values of both count with their mean. Raises ValueError or RuntimeError if all trials lie on
        a line.
        """
        import numpy as np
        from scipy.interpolate import LinearNDInterpolator

        trials = [trial for trial in self.complete if first in trial.params and second in trial.params]
        pairs = np.array([[trial.params[first], trial.params[second]] for trial in trials], dtype=float)
        points, where = np.unique(pairs, axis=0, return_inverse=True)
        where = where.reshape(-1)
        values = np.bincount(where, [self._clipped(trial.value or 0.0) for trial in trials]) / np.bincount(
            where
        )
        logs = [is_log(self._distribution(name)) for name in (first, second)]
        grid = [
            (np.geomspace if log else np.linspace)(row.min(), row.max(), GRID)
            for row, log in zip(points.T, logs, strict=True)
        ]
        # Distances are those on the axes.
        seen = [np.log(row) if log else row for row, log in zip(points.T, logs, strict=True)]
        mesh = np.meshgrid(*(np.log(row) if log else row for row, log in zip(grid, logs, strict=True)))
        interpolated = LinearNDInterpolator(np.column_stack(seen), values, rescale=True)(*mesh)
        figure = new_figure(8, 5.5, DPI)
        axes = figure.subplots()
        filled = axes.contourf(*grid, interpolated, levels=12, cmap="viridis")
        figure.colorbar(filled, label=self.label)
        axes.scatter(
            points[:, 0], points[:, 1], color="white", edgecolors=GRAY, s=24, clip_on=False, zorder=3
        )
        scale(axes, "x", self._distribution(first))
        scale(axes, "y", self._distribution(second))
        axes.set(xlabel=first, ylabel=second)
        axes.set_title(f"{self.name}: {self.label}, interpolated between trials", parse_math=False)
        return figure

    def parallel_coordinates(self) -> Figure:
        """Optuna's plot with our title and size."""
        from matplotlib import pyplot
        from optuna.visualization.matplotlib import plot_parallel_coordinate

        axes: Any = plot_parallel_coordinate(self.study, params=self.settings, target_name=self.label)
        figure: Figure = axes.get_figure()
        figure.suptitle(f"{self.name}: parallel coordinates", parse_math=False)
        for part in figure.axes:
            part.set_title("")
        figure.set_size_inches(10, 5.5)
        figure.tight_layout()
        figure.set_dpi(DPI)
        pyplot.close(figure)
        return figure

    def _distribution(self, setting: str) -> BaseDistribution:
        return next(trial.distributions[setting] for trial in self.complete if setting in trial.params)

    def _values(self, state: TrialState) -> list[tuple[int, float]]:
        ended = (trial for trial in self.study.trials if trial.state == state)
        return [(trial.number, trial.value) for trial in ended if trial.value is not None]

    def _clipped(self, value: float) -> float:
        low, high = self.span
        return min(high, max(low, value))

    def _limit(self, axes: Axes) -> None:
        low, high = self.span
        margin = 0.06 * ((high - low) or 1)
        axes.set_ylim(low - margin, high + margin)
