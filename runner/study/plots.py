"""Pictures of a study, and its table."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from runner.evaluation.metrics import METRICS
from runner.study.study import is_baseline, is_lost
from runner.utils.atomic_files import atomic_write
from runner.utils.plot_style import BLUE, GRAY, ORANGE


def table(trials: Sequence[FrozenTrial], settings: Sequence[str]) -> str:
    """The trials as CSV: number, state, value, seconds, the searched settings, scores, run and reason."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(
        [
            "trial",
            "state",
            "value",
            "baseline",
            "seconds",
            *settings,
            *(f"val/{name}" for name in METRICS),
            "run",
            "reason",
        ]
    )
    for trial in trials:
        about = trial.user_attrs
        known = about.get("scores", {})
        writer.writerow(
            [
                trial.number,
                "LOST" if is_lost(trial) else trial.state.name,
                "" if trial.value is None else repr(trial.value),
                "yes" if is_baseline(trial) else "",
                f"{about['seconds']:.2f}" if "seconds" in about else "",
                *(trial.params.get(name, "") for name in settings),
                *(known.get(name, "") for name in METRICS),
                about.get("run", ""),
                about.get("lost") or about.get("reason", ""),
            ]
        )
    return text.getvalue()


def importances(study: optuna.Study) -> dict[str, float]:
    """How much each setting mattered to the value (PED-ANOVA); empty where the trials do not tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dict(optuna.importance.get_param_importances(study))
        except (ValueError, RuntimeError):
            return {}


def draw(study: optuna.Study, name: str, objective: str, folder: Path) -> list[Path]:
    """Draw history, importances, parallel coordinates, slices and the contour of the two most important settings.

    Returns the files; pictures for which there are too few trials are left out.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    complete = [each for each in study.trials if each.state == TrialState.COMPLETE]
    if not complete:
        return []
    label = f"validation {objective}"
    weights = importances(study)
    shared = [each for each in weights if sum(each in trial.params for trial in complete) > 1]
    pictures: dict[str, Callable[[], Any]] = {"history": lambda: _history(study, name, label)}
    if weights:
        pictures["importances"] = lambda: _importances(weights, name, label)
    if len(complete) > 2 and shared:
        from optuna.visualization import matplotlib as drawn

        pictures["parallel_coordinates"] = lambda: drawn.plot_parallel_coordinate(
            study, shared, target_name=label
        )
        pictures["slices"] = lambda: _slices(study, complete, shared, name, label)
        if len(shared) > 1:
            pictures["contour"] = lambda: drawn.plot_contour(study, shared[:2], target_name=label)
    files = []
    for what, paint in pictures.items():
        # Optuna's plots set a matplotlib style for the whole process: its gray background would stay for later plots.
        with matplotlib.rc_context(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                axes = paint()
            except (ValueError, RuntimeError):  # a setting that never varied
                continue
            figure = axes.get_figure()
            if what in ("parallel_coordinates", "contour"):  # Optuna's own
                figure.suptitle(f"{name}: {what.replace('_', ' ')}", parse_math=False)
                for each in figure.axes:
                    each.set_title("")
                figure.set_size_inches(10, 5.5)
                figure.tight_layout()
            path = folder / f"{what}.png"
            with atomic_write(path) as aside:
                figure.savefig(aside, format="png", dpi=110)
            pyplot.close(figure)
            files.append(path)
    return files


def interactive(study: optuna.Study, objective: str, path: Path) -> bool:
    """Parallel coordinates whose axes can be brushed, in one HTML file that needs nothing else."""
    complete = [each for each in study.trials if each.state == TrialState.COMPLETE and each.params]
    if len(complete) < 3:
        return False
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name=f"validation {objective}")
    with atomic_write(path) as aside:
        aside.write_text(figure.to_html(include_plotlyjs=True), encoding="utf-8")
    return True


def _history(study: optuna.Study, name: str, label: str) -> Any:
    """Values over trials: complete, pruned, the best so far, and the baseline."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    complete = _values(study, TrialState.COMPLETE)
    pruned = _values(study, TrialState.PRUNED)
    pick = max if study.direction == optuna.study.StudyDirection.MAXIMIZE else min
    best: list[float] = []
    for _, value in complete:
        best.append(pick([*best[-1:], value]))
    numbers, values = zip(*complete, strict=True)
    axes.scatter(numbers, values, color=BLUE, label="complete")
    if pruned:
        axes.scatter(*zip(*pruned, strict=True), color=GRAY, marker="x", label="pruned (last value)")
    axes.step(numbers, best, where="post", color=ORANGE, label="best so far")
    given = next(
        (each.value for each in study.trials if is_baseline(each) and each.state == TrialState.COMPLETE), None
    )
    if given is not None:
        axes.axhline(given, color=GRAY, linestyle="--", label="baseline")
    low, high = _span(study, values)
    axes.set_title(f"{name}: {len(study.trials)} trials", parse_math=False)
    axes.set(xlabel="trial", ylabel=label)
    _limit(axes, low, high)
    beyond = [(each, value) for each, value in [*complete, *pruned] if not low <= value <= high]
    if beyond:
        worse = "v" if pick is max else "^"
        edge = [low if value < low else high for _, value in beyond]
        numbers_beyond = [each for each, _ in beyond]
        axes.scatter(numbers_beyond, edge, marker=worse, color=GRAY, label="worse, beyond the scale")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=5)
    return axes


def _slices(
    study: optuna.Study, trials: Sequence[FrozenTrial], settings: Sequence[str], name: str, label: str
) -> Any:
    """The value over each setting; later trials are darker, the baseline is marked, bad values lie at the edge."""
    from matplotlib.figure import Figure

    columns = min(4, len(settings))
    rows = -(-len(settings) // columns)
    figure = Figure(figsize=(3.2 * columns + 1, 3.2 * rows + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=True, squeeze=False)
    last = max(each.number for each in trials)
    low, high = _span(study, [each.value or 0.0 for each in trials])
    for axes, setting in zip(grid.flat, settings, strict=False):
        having = [each for each in trials if setting in each.params]
        kind = having[0].distributions[setting]
        choices = list(kind.choices) if isinstance(kind, CategoricalDistribution) else []
        places = [choices.index(each.params[setting]) if choices else each.params[setting] for each in having]
        values = [min(high, max(low, each.value or 0.0)) for each in having]
        drawn = axes.scatter(
            places,
            values,
            c=[each.number for each in having],
            cmap="viridis_r",
            vmin=0,
            vmax=last,
            edgecolors=GRAY,
            linewidths=0.5,
        )
        for each, place, value in zip(having, places, values, strict=True):
            if is_baseline(each):
                axes.plot(place, value, marker="*", markersize=14, color=ORANGE, linestyle="none")
        if choices:
            axes.set_xticks(
                range(len(choices)), [str(each) for each in choices], rotation=30 * (len(choices) > 5)
            )
        elif getattr(kind, "log", False):
            axes.set_xscale("log")
        axes.set_xlabel(setting)
        _limit(axes, low, high)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(settings) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel(label)
    figure.colorbar(drawn, ax=list(grid.flat), label="trial", aspect=30)
    figure.suptitle(f"{name}: {label} over each setting (star: baseline)", parse_math=False)
    return grid.flat[0]


def _span(study: optuna.Study, values: Sequence[float]) -> tuple[float, float]:
    """The values that are worth telling apart: all, or those within five times the better half's spread of the best."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    middle = ordered[len(ordered) // 2]
    if study.direction == optuna.study.StudyDirection.MAXIMIZE:
        return (max(low, high - 5 * (high - middle)), high) if high > middle else (low, high)
    return (low, min(high, low + 5 * (middle - low))) if middle > low else (low, high)


def _limit(axes: Any, low: float, high: float) -> None:
    margin = 0.06 * ((high - low) or 1)
    axes.set_ylim(low - margin, high + margin)


def _values(study: optuna.Study, state: TrialState) -> list[tuple[int, float]]:
    return [
        (each.number, each.value) for each in study.trials if each.state == state and each.value is not None
    ]


def _importances(weights: dict[str, float], name: str, label: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.5 + 0.4 * len(weights)), layout="constrained")
    axes = figure.subplots()
    names = list(weights)[::-1]
    bars = axes.barh(names, [weights[each] for each in names], color=BLUE)
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.set_title(f"{name}: importance of settings for {label}", parse_math=False)
    axes.set_xlabel("share of importance (PED-ANOVA)")
    axes.margins(x=0.12)
    return axes
