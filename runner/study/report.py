"""The end of a study: pictures and table, the best experiment as a file, and whether it is better."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from runner.config.schema import Experiment, as_yaml
from runner.evaluation.metrics import METRICS
from runner.study import plots
from runner.study.confirmation import Figures, confirm
from runner.study.plan import Plan
from runner.study.space import applied
from runner.study.study import Study, is_baseline, is_lost, words
from runner.tracking.sessions import Records
from runner.tracking.tracker import Tracker, tracked
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.intervals import CONFIDENCE, paired_difference


def finish(
    plan: Plan,
    study: Study | None,
    seeds: int,
    accelerator: Accelerator,
    records: Records,
    parent: Tracker,
    terminal: Terminal,
) -> None:
    """Write the study's report, if it is at its end and nobody else writes it. All processes call it.

    Args:
        plan: The study's.
        study: In its storage; None on ranks beyond the first.
        seeds: Fit seeds to compare best and baseline on; 0: none.
        accelerator: Device and peers.
        records: Begins the runs.
        parent: The study's run.
        terminal: Says what came out.
    """
    lock = FileLock(records.server.root / f".finish-{parent.run_id}.lock")
    if not broadcast_object_list([study is not None and _mine(study, lock, terminal)])[0]:
        return
    try:
        found = _found(study, terminal) if study is not None else None
        best: Experiment | None = broadcast_object_list(
            [applied(plan.baseline, found) if found is not None else None]
        )[0]
        if best is None:
            return
        sides = None
        if seeds:
            first = plan.baseline.seed.train + plan.fits
            sides = confirm(best, plan.baseline, first, seeds, study, accelerator, records, parent, terminal)
        if study is not None:
            _record(study, best, sides, records, parent, terminal)
    finally:
        if study is not None:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def _mine(study: Study, lock: FileLock, terminal: Terminal) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        terminal.line("another process writes the study's report")
        return False
    if study.finished:
        return True
    lock.release()
    running = sum(each.state == TrialState.RUNNING for each in study.trials())
    terminal.line(
        f"study {study.plan.name}: {study.counted() - running} of {study.plan.trials} trials done, {running} running"
        " elsewhere; whoever ends last writes the report"
    )
    return False


def _found(study: Study, terminal: Terminal) -> dict[str, bool | int | float | str | None] | None:
    """The best trial's values; said, beside the baseline's."""
    best, baseline = study.best, study.baseline
    if best is None:
        terminal.warn("no trial has come to its end: there is nothing to report")
        return None
    states = [("LOST" if is_lost(each) else each.state.name) for each in study.trials()]
    counts = ", ".join(f"{states.count(name)} {name.lower()}" for name in dict.fromkeys(states))
    rows = [_row("baseline", baseline)] if baseline else []
    if not is_baseline(best):
        rows.append(_row("best", best))
    header = ("", "trial", f"validation {METRICS[study.plan.objective].label}")
    terminal.table(f"Study {study.plan.name}: {counts}", header, rows)
    terminal.line(f"best: {words(best.params)}")
    if weights := plots.importances(study.optuna):
        said = ", ".join(f"{name} {value:.2f}" for name, value in list(weights.items())[:5])
        terminal.line(f"what mattered most: {said}")
    return dict(best.params) if not is_baseline(best) else {}


def _row(name: str, trial: FrozenTrial) -> tuple[str, str, str]:
    return name, str(trial.number), f"{trial.value:.4f}"


def _record(
    study: Study,
    best: Experiment,
    sides: tuple[list[Figures], list[Figures]] | None,
    records: Records,
    parent: Tracker,
    terminal: Terminal,
) -> None:
    """Put pictures, tables, the best experiment and the comparison into the study's run."""
    plan, client = study.plan, records.client
    assert client is not None  # noqa: S101 (for types: rank 0 has one)
    folder = records.server.root / "studies" / plan.name
    header = (
        f"# The best of study {plan.name}: trial {study.best.number} of {len(study.trials())}.\n"
        if study.best
        else ""
    )
    write_text(folder / "best.yaml", header + as_yaml(best))
    with tracked(
        records.server, client, plan.baseline.name, f"study {plan.name}", terminal, run_id=parent.run_id
    ) as tracker:
        for path in plots.draw(
            study.optuna, plan.name, METRICS[plan.objective].label, tracker.stage("figures/any").parent
        ):
            tracker.artifact(path, "figures")
        page = tracker.stage("parallel_coordinates.html")
        if plots.interactive(study.optuna, METRICS[plan.objective].label, page):
            tracker.artifact(page)
        settings = [each.setting for each in plan.space.dimensions]
        tracker.text("trials.csv", plots.table(study.trials(), settings))
        tracker.text("best.yaml", header + as_yaml(best))
        if study.best is not None and study.best.value is not None:
            tracker.metrics({"objective": study.best.value})
            tracker.tags({"runner.best_trial": str(study.best.number)})  # a parameter could not change
        if sides is not None:
            _compare(sides, best == plan.baseline, tracker, terminal)
    file = folder / "best.yaml"
    terminal.line(f"The best experiment is in {file}: ./launch.sh train --config {file}")
    terminal.line(
        f"The study's run {parent.run_id[:8]} is in MLflow, its trials beneath it; ./launch.sh ui shows it."
    )


def _compare(
    sides: tuple[list[Figures], list[Figures]], same: bool, tracker: Tracker, terminal: Terminal
) -> None:
    """Best against baseline on the same new seeds, in the terminal and in the study's run."""
    best, baseline = sides
    seeds = len(best)
    rows, values = [], {}
    verdict = "The baseline itself is the best: nothing was won."
    for split in ("val", "test"):
        for name in METRICS:
            key = f"{split}/{name}"
            ones, others = [each[key] for each in best], [each[key] for each in baseline]
            difference = paired_difference(ones, others)
            rows.append(
                (
                    f"{'validation' if split == 'val' else 'test'} {METRICS[name].label}",
                    _spread(others),
                    _spread(ones),
                    f"{difference.mean:+.4f}",
                    f"[{difference.low:+.4f}, {difference.high:+.4f}]" if seeds > 1 else "one seed: none",
                )
            )
            values[f"confirm/{key}/best"] = statistics.fmean(ones)
            values[f"confirm/{key}/baseline"] = statistics.fmean(others)
            values[f"confirm/{key}/difference"] = difference.mean
            if seeds > 1:
                values[f"confirm/{key}/difference_low"] = difference.low
                values[f"confirm/{key}/difference_high"] = difference.high
            if key == "test/top1" and not same:
                verdict = _verdict(difference.mean, difference.significant)
    header = ("", "baseline", "best", "difference", f"{CONFIDENCE:.0%} interval")
    terminal.table(f"Best against baseline on {seeds} new fit seeds (mean ± sd, paired)", header, rows)
    terminal.line(verdict, style="bold")
    tracker.metrics(values)
    tracker.text(
        "confirm.json", json.dumps({"best": best, "baseline": baseline, "verdict": verdict}, indent=1)
    )
    tracker.tags({"runner.verdict": verdict, "mlflow.note.content": verdict})


def _verdict(mean: float, certain: bool) -> str:
    points = f"{100 * mean:+.2f} points of test top-1"
    if not certain:
        return f"Nothing was won for certain: {points}, and the interval holds zero."
    return f"The best is {'better' if mean > 0 else 'worse'} than the baseline: {points}, the interval leaves out zero."


def _spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.4f}" + (
        f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    )
