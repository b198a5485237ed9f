"""The report of a finished study: plots, tables, the best experiment, and its comparison with the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from runner.config.schema import Experiment
from runner.config.tree import as_yaml, override
from runner.study.confirmation import Comparison, confirm
from runner.study.plots import StudyPlots, importances, trials_csv, why_unknown
from runner.study.session import StudySession
from runner.study.space import Value
from runner.study.study import Study
from runner.study.trials import count_states, is_baseline, short_values
from runner.tracking.tracker import Tracker
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.intervals import CONFIDENCE


def write_report(session: StudySession, seeds: int) -> None:
    """Write the report into the study's run and onto the terminal. All processes call it.

    Does nothing if the study is not finished, or another process writes the report.

    Args:
        session: What the process works with.
        seeds: New training seeds on which best and baseline are compared; 0: none.
    """
    with _claim(session) as is_ours:
        if not is_ours:
            return
        values = session.on_rank_0(lambda study: _print_best(study, session.terminal))
        if values is None:
            return
        plan = session.plan
        best = override(plan.baseline, plan.space.settings_of(values))
        with session.tracking.reopen_run(session.study_run.run_id, f"study {plan.name}") as tracker:
            if session.study is not None:  # before the best is confirmed, which takes long and may fail
                _log_report(session.study, best, tracker)
            comparison = confirm(session, best, seeds) if seeds and best != plan.baseline else None
            if session.study is not None:
                _conclude(session, session.study, best, comparison, tracker)


@contextmanager
def _claim(session: StudySession) -> Iterator[bool]:
    """Whether it is up to these processes to write the report; within the block nobody else does."""
    lock = FileLock(session.tracking.server.root / f".finish-{session.study_run.run_id}.lock")
    try:
        yield session.on_rank_0(lambda study: _acquire(study, lock, session.terminal))
    finally:
        if lock.is_locked:
            lock.release()
            Path(lock.lock_file).unlink(missing_ok=True)


def _acquire(study: Study, lock: FileLock, terminal: Terminal) -> bool:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        terminal.line("another process writes the study's report")
        return False
    if study.is_finished:
        return True
    lock.release()
    running = sum(trial.state == TrialState.RUNNING for trial in study.trials())
    terminal.line(
        f"study {study.plan.name}: {study.count_trials() - running} of {study.plan.trials} trials done, {running}"
        " running in other processes; the last process writes the report"
    )
    return False


def _print_best(study: Study, terminal: Terminal) -> dict[str, Value] | None:
    """Print how the study went. Returns how the best experiment differs from the baseline; None without a result."""
    best, baseline = study.best_trial, study.baseline_trial
    if best is None:
        terminal.warn("no trial was completed: there is nothing to report")
        return None
    rows = [_row("baseline", baseline)] if baseline else []
    if not is_baseline(best):
        rows.append(_row("best", best))
    header = ("", "trial", f"validation {study.plan.metric.label}")
    terminal.table(f"Study {study.plan.name}: {count_states(study.trials())}", header, rows)
    terminal.line(f"best: {'the baseline, ' * is_baseline(best)}{short_values(best.params)}")
    if reason := why_unknown(study.optuna):
        complete = sum(trial.state == TrialState.COMPLETE for trial in study.trials())
        terminal.line(f"importance of settings: unknown after {complete} trials ({reason})")
    elif shares := importances(study.optuna):
        five = ", ".join(f"{name} {share:.2f}" for name, share in list(shares.items())[:5])
        terminal.line(f"most important settings: {five}")
    return {} if is_baseline(best) else dict(best.params)


def _row(name: str, trial: FrozenTrial) -> tuple[str, str, str]:
    return name, str(trial.number), f"{trial.value:.4f}"


def _log_report(study: Study, best: Experiment, tracker: Tracker) -> None:
    plan, trial = study.plan, study.best_trial
    assert trial is not None  # noqa: S101 (for types: there is a best experiment)
    _log_plots(StudyPlots(study.optuna, plan.name, f"validation {plan.metric.label}"), tracker)
    tracker.log_text("trials.csv", trials_csv(study.trials(), plan.space.settings))
    tracker.log_text("best.yaml", as_yaml(best))
    if trial.value is not None:
        tracker.log_metrics({"objective": trial.value})
        # A tag, not a parameter: with more trials it can change.
        tracker.set_tags({"runner.best_trial": str(trial.number)})


def _conclude(
    session: StudySession, study: Study, best: Experiment, comparison: Comparison | None, tracker: Tracker
) -> None:
    """Print and log whether the best trial won against the baseline, and recommend it only if it did."""
    plan, trial, terminal = session.plan, study.best_trial, session.terminal
    assert trial is not None  # noqa: S101 (for types: there is a best experiment)
    is_baseline_best = best == plan.baseline
    if comparison is not None:
        verdict = comparison.verdict
    elif is_baseline_best:
        verdict = "No gain: no trial was better than the baseline. Keep the baseline."
    else:
        verdict = "Not confirmed: the best of many trials looks better than it is (--confirm 5 compares on new seeds)."
    about = f"# Trial {trial.number} of study {plan.name}, the best of {len(study.trials())}.\n# {verdict}\n"
    file = session.tracking.server.root / "studies" / plan.name / "best.yaml"
    write_text(file, about + as_yaml(best))
    tracker.log_text("best.yaml", about + as_yaml(best))
    tracker.set_tags({"runner.verdict": verdict, "mlflow.note.content": verdict})
    if comparison is not None:
        _log_comparison(comparison, tracker, terminal)
    terminal.line(verdict, style="bold")
    if comparison is not None and comparison.best_wins:
        terminal.line(f"Train it: ./launch.sh train --config {file}")
    elif not is_baseline_best:
        terminal.line(f"The settings of the best trial are in {file}.")
    terminal.line(
        f"The study's run {session.study_run.run_id[:8]} is in MLflow, with its trials as child runs; ./launch.sh ui"
        " shows it."
    )


def _log_plots(plots: StudyPlots, tracker: Tracker) -> None:
    for path in plots.save_all(tracker.artifact_path("figures/any").parent):
        tracker.log_artifact(path, "figures")
    page = tracker.artifact_path("parallel_coordinates.html")
    if plots.save_interactive(page):
        tracker.log_artifact(page)


def _log_comparison(comparison: Comparison, tracker: Tracker, terminal: Terminal) -> None:
    on = "new training seeds" if comparison.over == "seed" else "new divisions into training and validation"
    title = f"Best against baseline on {comparison.seeds} {on} (mean ± sd, paired)"
    header = ("", "baseline", "best", "difference", f"{100 * CONFIDENCE:.0f} % CI")
    terminal.table(title, header, list(comparison.rows()))
    tracker.log_metrics(comparison.metrics())
    tracker.log_text("confirm.json", comparison.to_json())
