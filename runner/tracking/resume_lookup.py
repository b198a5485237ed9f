"""Which interrupted run `--resume` means, and whether it can be resumed with the given experiment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from runner.config.identity import Identity
from runner.config.parser import Options
from runner.config.repeat import Repeat
from runner.config.schema import Experiment
from runner.config.tree import as_tree
from runner.tracking import run_lookup
from runner.tracking.interrupted_runs import STATE_FOLDER, InterruptedRun, list_interrupted_runs
from runner.tracking.journal import HEARTBEAT_TIMEOUT, Journal
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.tracking.process_identity import this_host
from runner.utils.atomic_files import write_text
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.paths import RECORDS
from runner.utils.redaction import redact
from runner.utils.safe_yaml import dump_yaml
from runner.utils.text import one_line

AUTO = "auto"
"""What `--resume` takes for the newest interrupted run of the experiment."""
NOT_REPEATED = Repeat()
MOST_SHOWN = 8
"""Differing settings that a message names."""


def find_interrupted_run(server: TrackingServer, reference: str) -> InterruptedRun:
    """The interrupted run with an id, the start of an id, or a name.

    Raises `UserError` if there is none or more than one, if it still runs, or if it is a child of another run.
    """
    known = list_interrupted_runs(server)
    matching = [run for run in known if reference in (run.run_id, run.record.name)]
    if not matching and len(reference) >= run_lookup.SHORTEST_ID:
        matching = [run for run in known if run.run_id.startswith(reference)]
    if not matching and (reason := _why_missing(server, reference)):
        raise UserError(f"{reason}; start a new run, without --resume.")
    if len(matching) != 1:
        labels = ", ".join(run.label for run in (matching or known)[:5]) or "none"
        what = "no interrupted run" if not matching else f"more than one interrupted run ({len(matching)})"
        raise UserError(
            f"There is {what} {reference!r} in {server.journals} (there are: {labels}); give the id of one, or auto, or"
            " the folder of its records with --tracking.root."
        )
    (run,) = matching
    if run.record.parent_id:
        raise UserError(
            f"Run {run.label} is one of several of run {run.record.parent_id[:8]}; resume that one, which resumes this"
            " one too."
        )
    if run.journal.alive:
        owner = run.journal.owner
        raise UserError(
            f"Run {run.label} still runs: process {owner.pid} on {owner.host}; stop it first, or wait."
        )
    return run


def _why_missing(server: TrackingServer, reference: str) -> str:
    """Why a run that exists cannot be resumed; empty if there is none of that id or name."""
    for journal in Journal.find_all(server.journals):
        if (
            len(reference) >= run_lookup.SHORTEST_ID
            and journal.owner.run_id.startswith(reference)
            and journal.resumable
        ):
            return f"{journal.folder / STATE_FOLDER / 'run.json'} is damaged, so run {reference} cannot be resumed"
    try:
        server.check_exists()
        run = run_lookup.find_run(server.connect(read_only=True), reference)
    except UserError:
        return ""
    label = f"Run {run.run_id[:8]} ({one_line(run.name, 100)})"
    if run.status == "FINISHED":
        return f"{label} has finished and cannot be resumed"
    return f"{label} has no saved state in {server.journals} to resume from"


def resume_candidates(
    server: TrackingServer,
    requested: dict[str, Any],
    repeat: Repeat = NOT_REPEATED,
    parent_id: str = "",
    alive: bool = False,
) -> list[InterruptedRun]:
    """Interrupted runs of an experiment, newest first, without those that diverged: they would diverge again.

    Args:
        server: Its root holds the journals.
        requested: The experiment as nested settings.
        repeat: How often the run trains the experiment.
        parent_id: Id of the run that they are children of.
        alive: List those that still run, instead of those that do not.
    """
    return [
        run
        for run in list_interrupted_runs(server)
        if (run.record.parent_id, run.record.repeated, run.record.diverged) == (parent_id, repeat, False)
        and redact(run.journal.owner.uri) == redact(server.uri)
        and not changed_settings(run, requested)
        and run.journal.alive == alive
    ]


def wait_for_sign_of_life(
    server: TrackingServer, experiment: Experiment, repeat: Repeat, terminal: Terminal
) -> None:
    """Wait until it is known of each run of an experiment that another host owns whether that host still works on it.

    A host that has just died looks like one that works, until its next heartbeat is overdue. Where no file can be
    written, that is never known.
    """
    runs = resume_candidates(server, as_tree(experiment), repeat, alive=True)
    waiting = [(run, run.journal.last_heartbeat()) for run in runs if run.journal.owner.host != this_host()]
    for run, _ in waiting:
        owner = run.journal.owner
        terminal.line(
            f"run {run.label} may still run: process {owner.pid} on {owner.host.partition('/')[0]}; waiting up to"
            f" {HEARTBEAT_TIMEOUT:.0f} s for a sign of life"
        )
    deadline = time.monotonic() + HEARTBEAT_TIMEOUT + 10
    while waiting and time.monotonic() < deadline:
        time.sleep(0.5)
        waiting = [
            (run, seen) for run, seen in waiting if run.journal.last_heartbeat() == seen and run.journal.alive
        ]


def changed_settings(run: InterruptedRun, requested: dict[str, Any]) -> list[str]:
    """The settings that can change results and differ from those of a run, each as a clause of a message.

    Images and weights are compared when the run continues.
    """
    clauses = run.record.identity.changes(Identity.of(requested))
    more = len(clauses) - MOST_SHOWN
    return [*clauses[:MOST_SHOWN], f"and {more} more"] if more > 0 else clauses


def runs_to_resume(server: TrackingServer, experiment: Experiment, options: Options) -> list[InterruptedRun]:
    """The interrupted runs that `--resume` means, the preferred one first; may be empty for `AUTO` only.

    Raises `UserError` if there is no run of that name, it still runs, or, without `branch`, it is a run of another
    experiment.
    """
    if options.resume is None or options.resume == AUTO:
        if options.branch:
            raise UserError("--branch needs the run to branch from: --resume RUN, not auto.")
        return resume_candidates(server, as_tree(experiment), options.repeated)
    run = find_interrupted_run(server, options.resume)
    if redact(run.journal.owner.uri) != redact(server.uri):
        raise UserError(
            f"The records of run {run.label} are in {redact(run.journal.owner.uri)}, not in {redact(server.uri)};"
            " set MLFLOW_TRACKING_URI as it was then, or move its folder back to where it was."
        )
    if options.branch:
        if options.repeat != 1 or run.record.repeat != 1:
            raise UserError("--branch continues one run; it cannot be combined with --repeat.")
        if experiment.split.is_cross_validation:
            raise UserError(
                "--branch continues one run, not the runs of all folds; name the fold of that run (--split.fold K)."
            )
        return [run]
    if run.record.repeated != options.repeated:
        raise UserError(
            f"Run {run.label} was started with {run.record.repeated.words}; give the same to resume it."
        )
    if changes := changed_settings(run, as_tree(experiment)):
        raise UserError(
            f"The experiment is not that of run {run.label}: {'; '.join(changes)}; give the same settings, or"
            " --branch to start a new run from its state."
        )
    if run.record.diverged:
        raise UserError(
            f"Run {run.label} diverged, and would diverge again; change settings (--optim.lr …) and add --branch to"
            " start a new run from its last good state."
        )
    return [run]


def with_experiment_of_resumed_run(argv: Sequence[str]) -> list[str]:
    """A command line, with the experiment of the run that it resumes unless it names one itself.

    Raises `UserError` as `find_interrupted_run` does.
    """
    reference = _option_value(argv, "--resume")
    has_config = any(word == "--config" or word.startswith("--config=") for word in argv)
    if not reference or reference == AUTO or reference.startswith("-") or has_config:
        return list(argv)
    root = _option_value(argv, "--tracking.root")
    run = find_interrupted_run(tracking_server(root or RECORDS), reference)
    path = run.state / "experiment.yaml"
    write_text(path, dump_yaml(run.record.requested))
    # The experiment may name the folder in which the records were before it was moved or copied.
    place = [] if root else ["--tracking.root", RECORDS]
    return ["--config", str(path), *place, *argv]


def _option_value(argv: Sequence[str], option: str) -> str | None:
    """The last value that a command line gives an option; None if it does not give it."""
    value = None
    for place, word in enumerate(argv):
        name, equals, text = word.partition("=")
        if name == option:
            value = text if equals else next(iter(argv[place + 1 : place + 2]), "")
    return value
