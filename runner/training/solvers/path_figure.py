"""The path of a solver, as a table and as a picture: how good each penalty is."""

from __future__ import annotations

from pathlib import Path

from runner.config.train_schema import TrainConfig
from runner.evaluation.metrics import METRICS
from runner.tracking.tracker import Tracker
from runner.training.solvers.solve import Solution
from runner.utils.csv_text import to_csv
from runner.utils.figures import BLUE, GRAY, new_figure, save_figure


def log_path(solution: Solution, settings: TrainConfig, title: str, tracker: Tracker) -> None:
    """Log the path as penalties.csv and figures/penalties.png, and the chosen penalty as a metric."""
    tracker.log_metrics({"penalty": solution.penalty})
    names = [*solution.path[0].scores.values]
    rows = [
        [f"{point.penalty:.6g}", *(f"{point.scores[name]:.6f}" for name in names)] for point in solution.path
    ]
    tracker.log_text("penalties.csv", to_csv(["penalty", *names], rows))
    path = tracker.artifact_path("figures/penalties.png")
    draw_path(solution, settings, f"{title}, {tracker.name}", path)
    tracker.log_artifact(path, "figures")


def draw_path(solution: Solution, settings: TrainConfig, title: str, path: Path) -> None:
    """Draw the metric that the penalty is chosen by, over the penalty.

    Args:
        solution: With its path.
        settings: Those of the solver.
        title: First part of the figure's title.
        path: PNG file to write.
    """
    metric = METRICS[settings.best]
    figure = new_figure(8, 4.5, dpi=120)
    axes = figure.subplots()
    penalties = [point.penalty for point in solution.path]
    factor, unit = (100, " %") if metric.counted else (1, "")
    values = [factor * point.scores[metric.name] for point in solution.path]
    axes.plot(penalties, values, color=BLUE, marker="o", markersize=4)
    chosen = values[penalties.index(solution.penalty)]
    axes.plot(solution.penalty, chosen, marker="*", markersize=16, color=BLUE, linestyle="none")
    axes.axvline(
        solution.penalty,
        color=GRAY,
        linestyle=":",
        label=f"chosen: {solution.penalty:.3g} ({chosen:.4g}{unit})",
    )
    by = "leaving one training image out" if settings.penalty_by == "leave_one_out" else "validation images"
    axes.set(xscale="log", xlabel="L2 penalty", ylabel=f"{metric.label}{unit}, {by}")
    axes.set_title(f"{title}: {settings.solver} path", parse_math=False)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", framealpha=0.9)
    save_figure(figure, path)
