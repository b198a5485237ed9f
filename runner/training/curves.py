"""The training curves of a run: loss and accuracy over epochs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.tracking.tracker import Tracker
from runner.training.results import EpochResult, best_epoch
from runner.utils.figures import BLUE, GRAY, ORANGE, new_figure, save_figure

MOST_NAMED = 3
"""Parameter groups whose learning rates are named; of more, the first and the last."""


def log_curves(history: Sequence[EpochResult], experiment: str, tracker: Tracker) -> None:
    """Draw the curves of a run and log them as figures/loss.png and figures/accuracy.png."""
    loss, accuracy = (tracker.artifact_path(f"figures/{name}.png") for name in ("loss", "accuracy"))
    draw_curves(history, f"{experiment}, {tracker.name}", loss, accuracy)
    for path in (loss, accuracy):
        tracker.log_artifact(path, "figures")


def draw_curves(history: Sequence[EpochResult], title: str, loss: Path, accuracy: Path) -> None:
    """Draw loss and accuracy of training and validation, and the learning rate, over epochs.

    Args:
        history: The epochs, one or more.
        title: First part of the figures' titles.
        loss: PNG file to write.
        accuracy: PNG file to write.
    """
    losses = [(epoch.train_loss, epoch.val["loss"]) for epoch in history]
    hits = [(100 * epoch.train_top1, 100 * epoch.val["top1"]) for epoch in history]
    _draw(history, _Curves(f"{title}: loss", "cross-entropy (nats per image)", losses), loss)
    _draw(history, _Curves(f"{title}: top-1 accuracy", "top-1 accuracy (%)", hits), accuracy)


@dataclass(frozen=True)
class _Curves:
    title: str
    label: str
    values: list[tuple[float, float]]
    """Of training and validation, for each epoch."""


def _draw(history: Sequence[EpochResult], curves: _Curves, path: Path) -> None:
    from matplotlib.ticker import MaxNLocator

    figure = new_figure(8, 5.5, dpi=120)
    axes, rates = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    numbers = [epoch.number for epoch in history]
    train, val = zip(*curves.values, strict=True)
    training = "training (running mean, with dropout)"
    axes.plot(numbers, train, color=ORANGE, marker="o", markersize=4, label=training)
    axes.plot(numbers, val, color=BLUE, marker="s", markersize=4, label="validation")
    best = best_epoch(history).number
    star = {"marker": "*", "markersize": 15, "color": BLUE, "linestyle": "none"}
    axes.plot(best, val[numbers.index(best)], label=f"best: epoch {best}", **star)
    for index, number in enumerate(epoch.number for epoch in history if epoch.lr_reduced):
        axes.axvline(number, color=GRAY, linestyle=":", label=None if index else "learning rate reduced")
    axes.set_title(curves.title, parse_math=False)  # a run's name may contain dollar signs
    axes.set_ylabel(curves.label)
    axes.margins(x=0.03)
    axes.grid(alpha=0.3)
    names = [*dict.fromkeys(name for epoch in history for name in epoch.group_lrs)] or [""]
    named = {names[0], names[-1]} if len(names) > MOST_NAMED else {*names}
    for index, name in enumerate(names):
        # The first group has the rate of the run; the others may begin to train later.
        own = [epoch.group_lrs.get(name, math.nan if index else epoch.lr) for epoch in history]
        rates.plot(numbers, own, color=GRAY, drawstyle="steps-mid", label=name)
        if name in named:
            rates.annotate(
                name, (numbers[-1], own[-1]), (3, 0), textcoords="offset points", fontsize=6, va="center"
            )
    rates.set(xlabel="epoch", ylabel="learning\nrate", yscale="log")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.grid(alpha=0.3)
    axes.legend(loc="best", framealpha=0.9)
    save_figure(figure, path)
