"""Resuming: which run a launch resumes, from which snapshot, and whether its data are still the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from runner.config.identity import Identity, weights_digest
from runner.config.parser import Options
from runner.config.repeat import Repeat
from runner.config.schema import Experiment
from runner.config.tree import as_tree, check_setting, override
from runner.tracking.interrupted_runs import InterruptedRun, why_not_resumable
from runner.tracking.journal import Journal, Owner
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.tracking.resume_lookup import (
    AUTO,
    resume_candidates,
    runs_to_resume,
    wait_for_sign_of_life,
)
from runner.training.setup import Setup
from runner.training.snapshot import Snapshot, load_newest
from runner.utils.console import Terminal
from runner.utils.errors import NotResumableError, UserError


@dataclass(frozen=True)
class ResumePoint:
    """Where a run starts.

    Args:
        requested: The experiment as nested settings, before "auto" was resolved.
        run_id: Of the interrupted run to resume; empty: the run is new.
        name: Of that run.
        snapshot: To continue from; None: from the beginning.
        branch_of: Id of the run that the snapshot is from, if this run branches from it.
        resolved: What "auto" was resolved to in the interrupted run, by dotted name.
        identity: Images and weights that the run must have, as far as they are known.
        parent_id: Id of the run that it is a child of; empty if of none.
    """

    requested: dict[str, Any]
    run_id: str = ""
    name: str = ""
    snapshot: Snapshot | None = None
    branch_of: str = ""
    resolved: dict[str, Any] = dataclasses.field(default_factory=dict)
    identity: Identity = dataclasses.field(default_factory=Identity)
    parent_id: str = ""

    @property
    def position(self) -> str:
        """Where training continues, for people."""
        return f"step {self.snapshot.step}" if self.snapshot else "the beginning"


def resolve(
    experiment: Experiment, options: Options, state: PartialState, terminal: Terminal
) -> tuple[Experiment, ResumePoint]:
    """What `--resume` and `--branch` mean; all processes call it together and get the same.

    Returns the experiment, with "auto" as the resumed run had resolved it, and where its run starts.

    Raises `UserError` if the run to resume does not exist, still runs, or is of another experiment.
    """
    if options.resume is None:
        return experiment, ResumePoint(as_tree(experiment))
    found = None
    if state.is_main_process:
        server = tracking_server(experiment.tracking.root)
        if options.resume == AUTO and not options.dry_run:
            wait_for_sign_of_life(server, experiment, options.repeated, terminal)
        runs = runs_to_resume(server, experiment, options)
        if not (options.branch or options.dry_run):
            runs = _take_over_first(runs, server, options.resume != AUTO, terminal)
        if runs:
            found = _resume_point(runs[0], options.branch, terminal)
        else:
            _report_none_found(experiment, options.repeated, server, terminal)
    return apply_resume_point(experiment, broadcast_object_list([found])[0])


def resolve_child(
    experiment: Experiment,
    requested: dict[str, Any],
    parent_id: str,
    accelerator: Accelerator,
    terminal: Terminal,
) -> tuple[Experiment, ResumePoint]:
    """As `resolve`, for one run of a repeated run, which is resumed if it was interrupted.

    Args:
        experiment: With its seeds and its fold.
        requested: The repeated run's experiment as nested settings, before "auto" was resolved.
        parent_id: Id of the repeated run.
        accelerator: Device and processes.
        terminal: Reports what is resumed.
    """
    own = {"seed": dataclasses.asdict(experiment.seed), "split": dataclasses.asdict(experiment.split)}
    requested = {**requested, **own}
    found = None
    if accelerator.is_main_process:
        server = tracking_server(experiment.tracking.root)
        candidates = resume_candidates(server, requested, parent_id=parent_id)
        runs = _take_over_first(candidates, server, False, terminal)
        found = _resume_point(runs[0], False, terminal) if runs else None
    found = broadcast_object_list([found])[0]
    experiment, start = apply_resume_point(experiment, found or ResumePoint(requested))
    return experiment, dataclasses.replace(start, parent_id=parent_id)


def apply_resume_point(experiment: Experiment, found: ResumePoint | None) -> tuple[Experiment, ResumePoint]:
    """The experiment with "auto" as it was resolved, and where its run starts. Raises `UserError` for odd values."""
    if found is None:
        return experiment, ResumePoint(as_tree(experiment))
    if found.branch_of:  # a new run, with its own settings
        return experiment, dataclasses.replace(found, requested=as_tree(experiment))
    for name, value in found.resolved.items():
        check_setting(f"{name} of the interrupted run", experiment, name, value)
    return override(experiment, found.resolved), found


def _take_over_first(
    runs: Sequence[InterruptedRun], server: TrackingServer, is_named: bool, terminal: Terminal
) -> list[InterruptedRun]:
    """The first of some interrupted runs that this process could take over; empty if it could take over none.

    Raises `UserError` if the user named the run, and it cannot be taken over.
    """
    client = server.connect() if runs else None
    for run in runs:
        assert client is not None  # noqa: S101 (for types: there are runs)
        reason = why_not_resumable(client, run.run_id)
        if not reason:
            try:
                Journal.take_over(run.journal.folder.parent, Owner.this_process(server.uri, run.run_id))
                return [run]
            except FileExistsError:
                reason = "is being resumed by another process"
            except FileNotFoundError:
                reason = "was finished by another process"
        if is_named:
            raise UserError(f"Run {run.label} {reason}; start a new run, without --resume.")
        terminal.warn(f"run {run.label} {reason}: it is skipped")
    return []


def _report_none_found(
    experiment: Experiment, repeat: Repeat, server: TrackingServer, terminal: Terminal
) -> None:
    for running in resume_candidates(server, as_tree(experiment), repeat, alive=True):
        owner = running.journal.owner
        host = owner.host.partition("/")[0]
        terminal.line(f"run {running.label} of this experiment runs: process {owner.pid} on {host}")
    terminal.line("no interrupted run of this experiment: starting a new one")


def _resume_point(run: InterruptedRun, is_branch: bool, terminal: Terminal) -> ResumePoint:
    """An interrupted run's newest undamaged snapshot, and what its record says."""
    snapshot, problems = load_newest(run.state)
    for problem in problems:
        terminal.warn(f"{problem}; using an earlier one" if snapshot else problem)
    position = " at the beginning: it had no snapshot yet"
    if snapshot:
        position = f" at epoch {snapshot.epoch + 1}, step {snapshot.step}"
    if run.record.has_parts:
        position = ": its finished parts are kept"
    terminal.line(f"{'branching from' if is_branch else 'resuming'} run {run.label}{position}", style="bold")
    record = run.record
    if is_branch:
        return ResumePoint(record.requested, snapshot=snapshot, branch_of=run.run_id)
    start = ResumePoint(record.requested, run.run_id, record.name, snapshot, resolved=record.resolved)
    return dataclasses.replace(start, identity=record.identity)


def data_identity(setup: Setup, frozen_digest: str) -> dict[str, Any]:
    """What a resumed run compares with its snapshot.

    Args:
        setup: The run.
        frozen_digest: Of the frozen layers; empty on ranks other than 0, which compare nothing.
    """
    return {
        "manifest": setup.manifest.digest,
        "weights": weights_digest(setup.experiment.model.weights) if frozen_digest else "",
        "frozen": frozen_digest,
        "processes": setup.accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


def check_same_data(start: ResumePoint, setup: Setup, now: dict[str, Any], terminal: Terminal) -> None:
    """Check that images, split and weights are those of the run that is continued.

    Args:
        start: Where the run starts.
        setup: The run.
        now: Its `data_identity`; rank 0's counts.
        terminal: Warns of what changes the last digits only.

    Every process calls it. Raises `NotResumableError` on all of them.
    """
    reason = _difference(start, setup, now, terminal) if setup.accelerator.is_main_process else ""
    reason = broadcast_object_list([reason])[0]
    if reason:
        raise NotResumableError(reason)


def _difference(start: ResumePoint, setup: Setup, now: dict[str, Any], terminal: Terminal) -> str:
    """Why the run cannot continue from its snapshot, in a sentence; empty if it can."""
    known, run_id = start.identity, (start.branch_of or start.run_id)[:8]
    run = f"run {run_id}" if run_id else "the runs before"
    then = start.snapshot.values if start.snapshot else {}
    if start.snapshot:  # it holds the trained weights, so that of their file only the frozen ones matter
        known = Identity(manifest=str(then.get("manifest", "unknown")))
    if known.has_other_images(Identity(manifest=now["manifest"])):
        # This holds for a branch too: it would be evaluated on images that it was trained on.
        return (
            f"The images in {setup.manifest.root}, or their split, are not those of {run}; restore the folder, set"
            " --data.root to the original one, or start a new run."
        )
    other_frozen = start.snapshot is not None and then.get("frozen") != now["frozen"]
    if other_frozen or known.has_other_weights(Identity(weights=now["weights"])):
        return (
            f"The {'frozen' if other_frozen else 'pretrained'} weights are not those of {run}: model.weights is another"
            " file, or the file has changed; restore it, or start a new run."
        )
    if start.snapshot is None:
        return ""
    epochs = setup.experiment.train.max_epochs
    if start.branch_of and start.snapshot.epoch >= epochs:
        return (
            f"{run.capitalize()} has trained {start.snapshot.epoch} epochs already, and train.epochs is {epochs}; raise"
            " --train.epochs to train more."
        )
    for name in ("processes", "threads"):
        if then.get(name) != now[name]:
            terminal.warn(
                f"{then.get(name)} {name} before, {now[name]} now: sums are computed in another order, so the last"
                " digits may differ"
            )
    return ""
