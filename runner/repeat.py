"""Runs in MLflow: one, or K fit seeds of an experiment as children of one run."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence

from accelerate import Accelerator

from runner import run
from runner.experiment import Experiment, as_tree, flatten
from runner.records import Records, reproduced
from runner.run import Result
from runner.scores import Scores
from runner.terminal import Terminal
from runner.tracker import Tracker

FIGURES = ("top1", "top5", "recall", "loss")


def train(experiment: Experiment, times: int, accelerator: Accelerator, terminal: Terminal) -> list[Result]:
    """Train an experiment once, or `times` fit seeds counted up from its own, and say what came out."""
    records = Records(experiment, accelerator, terminal)
    original = reproduced()[1]
    name = f"reproduction of {original}" if original else time.strftime("%m-%d %H:%M:%S")
    if times == 1:
        with records.begin(name) as tracker:
            result = run.train(experiment, accelerator, tracker, terminal)
        _say(result, terminal)
        _say_where(experiment, tracker, terminal)
        return [result]
    results: list[Result] = []
    children: list[Tracker] = []
    with records.begin(name, works=False) as parent:
        parent.params(flatten(as_tree(experiment)))
        for seed in range(experiment.seed.fit, experiment.seed.fit + times):
            seeded = dataclasses.replace(experiment, seed=dataclasses.replace(experiment.seed, fit=seed))
            terminal.line(f"fit seed {seed}", style="bold")
            with records.begin(f"seed {seed} of {name}", parent) as tracker:
                results.append(run.train(seeded, accelerator, tracker, terminal))
            children.append(tracker)
            _say(results[-1], terminal)
        summary = {
            f"test/{which}/{figure}{'' if name == 'mean' else '_sd'}": value  # as the children's, to compare
            for which in ("best", "last")
            for figure in FIGURES
            for name, value in spread([getattr(getattr(result, which), figure) for result in results]).items()
        }
        parent.metrics(summary)
        parent.params({"repeat": times})
    _say_spread(results, terminal)
    _say_where(experiment, max(zip(results, children, strict=True), key=_val)[1], terminal)
    return results


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and (n - 1) standard deviation of a figure over seeds."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}


def _val(pair: tuple[Result, Tracker]) -> tuple[float, float]:
    return pair[0].best_epoch.val.top1, -pair[0].best_epoch.val.loss


def _say(result: Result, terminal: Terminal) -> None:
    best = result.best_epoch
    last = result.history[-1]
    rows: list[tuple[str, int, Scores]] = [
        ("validation, best", best.number, best.val),
        ("test, best checkpoint", best.number, result.best),
        ("test, last checkpoint", last.number, result.last),
    ]
    terminal.table(
        "Result",
        ("", "epoch", "images", "top-1", "top-5", "mean recall", "loss"),
        [
            (
                what,
                str(epoch),
                f"{s.images:,}",
                f"{s.top1:.4f}",
                f"{s.top5:.4f}",
                f"{s.recall:.4f}",
                f"{s.loss:.4f}",
            )
            for what, epoch, s in rows
        ],
    )


def _say_spread(results: Sequence[Result], terminal: Terminal) -> None:
    rows = []
    for which in ("best", "last"):
        cells = []
        for figure in FIGURES:
            figures = spread([getattr(getattr(result, which), figure) for result in results])
            cells.append(f"{figures['mean']:.4f} ± {figures['sd']:.4f}")
        rows.append((f"test, {which} checkpoint", *cells))
    terminal.table(
        f"Mean ± sd of {len(results)} fit seeds", ("", "top-1", "top-5", "mean recall", "loss"), rows
    )


def _say_where(experiment: Experiment, tracker: Tracker, terminal: Terminal) -> None:
    if experiment.network.weights is None:
        terminal.warn(
            "the convolutions had random weights: this shows that everything works, not what VGG can do"
        )
    terminal.line(
        f"Run {tracker.run_id} ({experiment.name}, {tracker.name}) is in MLflow: ./launch.sh ui shows it,"
    )
    run = tracker.run_id[:8]
    terminal.line(
        f"./launch.sh evaluate {run} writes a report; ./launch.sh predict IMAGE --model {run} uses it."
    )
