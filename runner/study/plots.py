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
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from runner.evaluation.metrics import METRICS
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


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the value's variation each setting explains (PED-ANOVA), the largest first.

    Empty if there are too few trials. Source: S. Watanabe et al., PED-ANOVA, IJCAI 2023.
    """
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
        """Settings that several complete trials have, the most important first."""
        shares = importances(self.study)
        return [name for name in shares if sum(name in trial.params for trial in self.complete) > 1]

    @cached_property
    def span(self) -> tuple[float, float]:
        """The values to show; those more than five times as far from the best as the median are not."""
        values = sorted(trial.value or 0.0 for trial in self.complete)
        low, median, high = values[0], values[len(values) // 2], values[-1]
        if self.study.direction == StudyDirection.MAXIMIZE:
            return (max(low, high - 5 * (high - median)), high) if high > median else (low, high)
        return (low, min(high, low + 5 * (median - low))) if median > low else (low, high)

    def save_all(self, folder: Path) -> list[Path]:
        """Save history, importances, slices, parallel coordinates, and contours of the two most important settings.

        Returns the files. Plots that need more trials, or that Optuna cannot draw, are left out.
        """
        import matplotlib

        matplotlib.use("agg")
        files = []
        for name, draw in self._plots():
            # Optuna's plots set a matplotlib style for the whole process: its gray background would stay for later
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

        Returns False, and saves nothing, if there are too few trials.
        """
        if sum(bool(trial.params) for trial in self.complete) < 3:
            return False
        figure = optuna.visualization.plot_parallel_coordinate(self.study, target_name=self.label)
        with atomic_write(path) as page:
            page.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
        return True

    def _plots(self) -> Iterator[tuple[str, Callable[[], Figure]]]:
        if self.complete:
            yield "history", self.history
            yield "importances", partial(self.optuna_plot, "param_importances", "importance of settings")
        if len(self.complete) > 2 and self.settings:
            parallel = partial(self.optuna_plot, "parallel_coordinate", "parallel coordinates", self.settings)
            yield "parallel_coordinates", parallel
            yield "slices", self.slices
            if len(self.settings) > 1:
                yield "contour", partial(self.optuna_plot, "contour", "contour", self.settings[:2])

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
        figure.colorbar(points, ax=list(grid.flat), label="trial", aspect=30)
        figure.suptitle(f"{self.name}: {self.label} over each setting (star: baseline)", parse_math=False)
        return figure

    def _slice(self, axes: Axes, setting: str) -> PathCollection:
        trials = [trial for trial in self.complete if setting in trial.params]
        distribution = trials[0].distributions[setting]
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
            axes.set_xticks(range(len(choices)), map(str, choices), rotation=30 * (len(choices) > 5))
        elif getattr(distribution, "log", False):
            axes.set_xscale("log")
        axes.set_xlabel(setting)
        self._limit(axes)
        axes.grid(alpha=0.3)
        return points

    def optuna_plot(self, kind: str, title: str, settings: list[str] | None = None) -> Figure:
        """One of Optuna's plots, over some settings or all, with our title and size."""
        from matplotlib import pyplot
        from optuna.visualization import matplotlib as plots

        axes = getattr(plots, f"plot_{kind}")(self.study, params=settings, target_name=self.label)
        figure: Figure = axes.get_figure()
        figure.suptitle(f"{self.name}: {title}", parse_math=False)
        for part in figure.axes:
            part.set_title("")
        figure.set_size_inches(10, 5.5)
        figure.tight_layout()
        figure.set_dpi(DPI)
        pyplot.close(figure)
        return figure

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
