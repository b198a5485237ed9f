"""Pictures of a run, made to be read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.training.loop import EpochResult
from runner.utils.atomic_files import atomic_write
from runner.utils.plot_style import BLUE, GRAY, ORANGE


def curves(history: Sequence[EpochResult], title: str, loss: Path, accuracy: Path) -> None:
    """Draw loss and accuracy over epochs, training and validation, with the steps of the learning rate.

    Args:
        history: The epochs.
        title: Of the run.
        loss: PNG file to write.
        accuracy: PNG file to write.
    """
    best = [epoch for epoch in history if epoch.best][-1]
    _curve(
        history,
        f"{title}: loss",
        "cross-entropy (nats an image)",
        [epoch.train_loss for epoch in history],
        [epoch.val["loss"] for epoch in history],
        (best.number, best.val["loss"]),
        loss,
    )
    _curve(
        history,
        f"{title}: top-1 accuracy",
        "top-1 accuracy (%)",
        [100 * epoch.train_top1 for epoch in history],
        [100 * epoch.val["top1"] for epoch in history],
        (best.number, 100 * best.val["top1"]),
        accuracy,
    )


def _curve(
    history: Sequence[EpochResult],
    title: str,
    label: str,
    train: list[float],
    val: list[float],
    best: tuple[int, float],
    path: Path,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes, rates = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    numbers = [epoch.number for epoch in history]
    axes.plot(
        numbers, train, color=ORANGE, marker="o", markersize=4, label="training (running, with dropout)"
    )
    axes.plot(numbers, val, color=BLUE, marker="s", markersize=4, label="validation")
    axes.plot(*best, marker="*", markersize=15, color=BLUE, linestyle="none", label=f"best: epoch {best[0]}")
    reduced = [epoch.number for epoch in history if epoch.reduced]
    for place, number in enumerate(reduced):
        axes.axvline(number, color=GRAY, linestyle=":", label="learning rate divided" if not place else None)
    axes.set_title(title, parse_math=False)
    axes.set_ylabel(label)
    axes.margins(x=0.03)
    axes.grid(alpha=0.3)
    rates.plot(numbers, [epoch.lr for epoch in history], color=GRAY, drawstyle="steps-mid")
    rates.set(xlabel="epoch", ylabel="learning\nrate", yscale="log")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.grid(alpha=0.3)
    axes.legend(loc="best", framealpha=0.9)
    with atomic_write(path) as aside:
        figure.savefig(aside, format="png")
