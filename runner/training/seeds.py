"""Runs in MLflow: one, or K fit seeds of an experiment as children of one run."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from runner.config.schema import Experiment, as_tree, flatten
from runner.evaluation.metrics import METRICS, Scores
from runner.tracking import interrupted_runs
from runner.tracking.sessions import Records, reproduced
from runner.tracking.tracker import Tracker
from runner.training import resume, run
from runner.training.resume import ResumePoint
from runner.training.run import RunResult
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal


def train(
    experiment: Experiment,
    times: int,
    accelerator: Accelerator,
    terminal: Terminal,
    start: ResumePoint | None = None,
) -> list[RunResult]:
    """Train an experiment once, or `times` fit seeds counted up from its own, and say what came out.

    Args:
        experiment: What to train.
        times: Fit seeds.
        accelerator: Device and peers.
        terminal: Shows progress.
        start: Where an interrupted run goes on; None: from the beginning.

    Raises `UserError` as `run.train` does, and where somebody else goes on with the same run.
    """
    start = start or ResumePoint(as_tree(experiment))
    records = Records(experiment, accelerator, terminal)
    original = reproduced()[1]
    name = f"reproduction of {original}" if original else start.name or time.strftime("%m-%d %H:%M:%S")
    if times == 1:
        with records.begin(name, again=start.run_id) as tracker:
            result = run.train(experiment, accelerator, tracker, terminal, start)
        _say(result, terminal)
        _say_where(experiment, tracker, terminal)
        return [result]
    with records.begin(name, works=False, again=start.run_id) as parent:
        results, children = _seeds(experiment, times, accelerator, terminal, records, parent, start)
        summary = {
            f"test/{which}/{figure}{'' if name == 'mean' else '_sd'}": value  # as the children's, to compare
            for which in ("best", "last")
            for figure in METRICS
            for name, value in spread([getattr(result, which)[figure] for result in results]).items()
        }
        parent.metrics(summary)
        parent.params({"repeat": times})
    _say_spread(results, terminal)
    _say_where(experiment, max(zip(results, children, strict=True), key=_val)[1], terminal)
    return results


def _seeds(
    experiment: Experiment,
    times: int,
    accelerator: Accelerator,
    terminal: Terminal,
    records: Records,
    parent: Tracker,
    start: ResumePoint,
) -> tuple[list[RunResult], list[Tracker]]:
    """Train fit seed after fit seed as children of a run; those that had finished before it was interrupted stay."""
    parent.params(flatten(as_tree(experiment)))
    state = parent.room("state") if accelerator.is_main_process else None
    # The children decide the rest; this has been decided with the accelerator.
    decided = dataclasses.replace(experiment.train, precision=accelerator.mixed_precision)
    experiment = dataclasses.replace(experiment, train=decided)
    if state is not None:
        interrupted_runs.describe(state, parent.name, start.asked, experiment, repeat=times)
    results: list[RunResult] = []
    children: list[Tracker] = []
    for seed in range(experiment.seed.train, experiment.seed.train + times):
        seeded = dataclasses.replace(experiment, seed=dataclasses.replace(experiment.seed, train=seed))
        name = f"seed {seed} of {parent.name}"
        terminal.line(f"fit seed {seed}", style="bold")
        seeded, going = resume.child(seeded, start.asked, parent.run_id, accelerator, terminal)
        done = broadcast_object_list([_finished(state, seed) if state is not None else None])[0]
        if done is not None and not going.run_id:
            child = Tracker()
            child.run_id, child.name, result = done["run_id"], name, RunResult.from_json(done["result"])
            terminal.line(f"run {child.run_id[:8]} has finished before")
        else:
            with records.begin(name, parent, again=going.run_id) as child:
                result = run.train(seeded, accelerator, child, terminal, going, parent.run_id)
                if state is not None:  # before the run ends: one that has ended can no longer be gone on with
                    told = {"run_id": child.run_id, "result": result.as_json()}
                    write_text(state / f"seed-{seed}.json", json.dumps(told))
        results.append(result)
        children.append(child)
        _say(result, terminal)
    return results, children


def _finished(state: Path, seed: int) -> dict[str, Any] | None:
    """What was kept of a fit seed that has finished."""
    try:
        told: dict[str, Any] = json.loads((state / f"seed-{seed}.json").read_text(encoding="utf-8"))
        RunResult.from_json(told["result"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return told


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean and (n - 1) standard deviation of a figure over seeds."""
    return {"mean": statistics.fmean(values), "sd": statistics.stdev(values)}


def _val(pair: tuple[RunResult, Tracker]) -> tuple[float, float]:
    return pair[0].best_epoch.val["top1"], -pair[0].best_epoch.val["loss"]


def _say(result: RunResult, terminal: Terminal) -> None:
    best = result.best_epoch
    last = result.history[-1]
    rows: list[tuple[str, int, Scores]] = [
        ("validation, best", best.number, best.val),
        ("test, best checkpoint", best.number, result.best),
        ("test, last checkpoint", last.number, result.last),
    ]
    terminal.table(
        "Result",
        ("", "epoch", "images", *(metric.label for metric in METRICS.values())),
        [
            (
                what,
                str(epoch),
                f"{s.images:,}",
                *(f"{s[name]:.4f}" for name in METRICS),
            )
            for what, epoch, s in rows
        ],
    )


def _say_spread(results: Sequence[RunResult], terminal: Terminal) -> None:
    rows = []
    for which in ("best", "last"):
        cells = []
        for figure in METRICS:
            figures = spread([getattr(result, which)[figure] for result in results])
            cells.append(f"{figures['mean']:.4f} ± {figures['sd']:.4f}")
        rows.append((f"test, {which} checkpoint", *cells))
    terminal.table(
        f"Mean ± sd of {len(results)} fit seeds", ("", *(metric.label for metric in METRICS.values())), rows
    )


def _say_where(experiment: Experiment, tracker: Tracker, terminal: Terminal) -> None:
    if experiment.model.weights is None:
        terminal.warn(
            "the convolutions had random weights: this shows that everything works, not what VGG can do"
        )
    if not tracker.delivered:
        terminal.line(
            f"Run {tracker.run_id} ({experiment.name}, {tracker.name}) has finished; ./launch.sh sync brings its"
            " records to MLflow."
        )
        return
    terminal.line(
        f"Run {tracker.run_id} ({experiment.name}, {tracker.name}) is in MLflow: ./launch.sh ui shows it,"
    )
    run = tracker.run_id[:8]
    terminal.line(
        f"./launch.sh evaluate {run} writes a report; ./launch.sh predict IMAGE --model {run} uses it."
    )
