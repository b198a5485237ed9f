"""Going on with an interrupted run: what all processes of a launch agree on before anything is set up."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from runner.config.parser import Options, check_setting
from runner.config.schema import Experiment, as_tree
from runner.tracking.interrupted_runs import AUTO, Unfinished, asked_for, fate, of_experiment
from runner.tracking.journal import Journal, me
from runner.tracking.mlflow_server import Server, server
from runner.training import snapshot
from runner.training.setup import Prepared
from runner.training.snapshot import Snapshot
from runner.utils.console import Terminal
from runner.utils.errors import NotResumable, UserError


@dataclass(frozen=True)
class Start:
    """Where a run starts from.

    Args:
        asked: The tree of the experiment, before anything was left to a device.
        run_id: Of the interrupted run that goes on; empty: it is a new one.
        name: Of that run.
        snapshot: To go on from; None: it had none yet, or the run is a new one.
        branch: Id of the run that the snapshot is of, where that was another one.
    """

    asked: dict[str, Any]
    run_id: str = ""
    name: str = ""
    snapshot: Snapshot | None = None
    branch: str = ""


def agree(
    experiment: Experiment, options: Options, state: PartialState, terminal: Terminal
) -> tuple[Experiment, Start]:
    """The experiment, with what had been left to the device as it was then, and where its run starts from.

    Raises `UserError` where the run to go on with is not there, not over, or of another experiment.
    """
    if options.resume is None:
        return experiment, Start(as_tree(experiment))
    found = None
    if state.is_main_process:
        place = server(experiment.tracking.root)
        runs = asked_for(place, experiment, options.resume, options.repeat, options.branch)
        if not (options.branch or options.dry_run):
            runs = _taken(runs, place, options.resume != AUTO, terminal)
        found = told(runs[0], options.branch, terminal) if runs else None
        if not runs:
            for other in of_experiment(place, as_tree(experiment), options.repeat, alive=True):
                owner = other.journal.owner
                terminal.line(
                    f"run {other.called} of this experiment runs: process {owner.pid} on {owner.host}"
                )
            terminal.line("no interrupted run of this experiment: beginning a new one")
    return settled(experiment, broadcast_object_list([found])[0])


def _taken(runs: Sequence[Unfinished], place: Server, named: bool, terminal: Terminal) -> list[Unfinished]:
    """The first of some interrupted runs that can be had, as this process's own from now on; none: none can.

    Raises `UserError` where that is so of a run that was named.
    """
    client = place.connect() if runs else None
    for run in runs:
        assert client is not None  # noqa: S101 (for types: there are runs)
        why = fate(client, run.run_id)
        if not why:
            try:
                Journal.claim(run.journal.folder.parent, me(place.uri, run.run_id))
            except FileExistsError:
                why = "goes on in another process already"
            except FileNotFoundError:
                why = "has come to its end in another process"
            else:
                return [run]
        if named:
            raise UserError(f"Run {run.called} {why}; begin a new run, without --resume.")
        terminal.warn(f"run {run.called} {why}: it is passed over")
    return []


def child(
    experiment: Experiment, asked: dict[str, Any], parent: str, accelerator: Accelerator, terminal: Terminal
) -> tuple[Experiment, Start]:
    """The same for a fit seed of a repeated run: its interrupted run goes on, if there is one.

    Args:
        experiment: With the seed.
        asked: The tree of the repeated run's experiment, which has its first seed.
        parent: Id of the repeated run.
        accelerator: Device and peers.
        terminal: Says where it goes on.
    """
    asked = {**asked, "seed": {**asked["seed"], "train": experiment.seed.train}}
    found = None
    if accelerator.is_main_process:
        place = server(experiment.tracking.root)
        runs = _taken(of_experiment(place, asked, parent=parent), place, False, terminal)
        found = told(runs[0], False, terminal) if runs else None
    found = broadcast_object_list([found])[0]
    return (experiment, Start(asked)) if found is None else settled(experiment, found)


def told(run: Unfinished, branch: bool, terminal: Terminal) -> tuple[dict[str, Any], Start]:
    """What the device had decided in an interrupted run, and the start from its newest whole snapshot."""
    kept, faults = snapshot.newest(run.state)
    for fault in faults:
        terminal.warn(f"{fault}; taking an earlier one" if kept else fault)
    begun = f"epoch {kept.epoch + 1}, step {kept.step}" if kept else "the beginning"
    terminal.line(
        f"{'branching off' if branch else 'going on with'} run {run.called} at {begun}", style="bold"
    )
    if branch:
        return {}, Start(run.asked, snapshot=kept, branch=run.run_id)
    return run.decided, Start(run.asked, run.run_id, run.name, kept)


def settled(experiment: Experiment, found: tuple[dict[str, Any], Start] | None) -> tuple[Experiment, Start]:
    """An experiment with what had been decided, and its start."""
    if found is None:
        return experiment, Start(as_tree(experiment))
    decided, start = found
    if start.branch:
        return experiment, dataclasses.replace(start, asked=as_tree(experiment))
    for name, value in decided.items():
        check_setting(f"{name} of the interrupted run", experiment, name, value)
        group, _, setting = name.partition(".")
        part = dataclasses.replace(getattr(experiment, group), **{setting: value})
        experiment = dataclasses.replace(experiment, **{group: part})
    return experiment, start


def identity_of(ready: Prepared, frozen: str, accelerator: Accelerator) -> dict[str, Any]:
    """What must be the same for a run to go on as if nothing had happened; `frozen` is the frozen layers' digest."""
    return {
        "manifest": ready.manifest.digest,
        "frozen": frozen,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
    }


def check_same(start: Start, ready: Prepared, now: dict[str, Any], terminal: Terminal) -> None:
    """See that the images, their split and the frozen weights are those of the run to go on from.

    Args:
        start: Where the run starts from.
        ready: What the run has now.
        now: The `identity_of` that, as rank 0 knows it.
        terminal: Hears of what changes last digits only.

    Every process calls it, and raises `NotResumable` where they are not.
    """
    refused = _difference(start, ready, now, terminal) if PartialState().is_main_process else ""
    refused = broadcast_object_list([refused])[0]
    if refused:
        raise NotResumable(refused)


def _difference(start: Start, ready: Prepared, now: dict[str, Any], terminal: Terminal) -> str:
    """Why a run cannot go on from a snapshot, in a sentence; empty: it can."""
    if start.snapshot is None:
        return ""
    then, whose = start.snapshot.about, f"run {(start.branch or start.run_id)[:8]}"
    if then.get("manifest") != now["manifest"]:
        # A branch, too: it would be judged on images that it was trained on.
        return (
            f"The images in {ready.manifest.root}, or their split, are not those of {whose}; make the folder what it"
            " was, name it with --data.root, or begin a new run."
        )
    if then.get("frozen") != now["frozen"]:
        return (
            f"The frozen weights are not those of {whose}: another model.weights is given, or the file has changed;"
            " restore it, or begin a new run."
        )
    if start.branch and start.snapshot.epoch >= ready.experiment.train.epochs:
        return (
            f"{whose.capitalize()} has {start.snapshot.epoch} epochs behind it, and train.epochs is"
            f" {ready.experiment.train.epochs}: nothing is left to train; raise --train.epochs."
        )
    for name in ("processes", "threads"):
        if then.get(name) != now[name]:
            terminal.warn(
                f"{then.get(name)} {name} before, {now[name]} now: sums are taken in another order, and may differ in"
                " their last digits"
            )
    return ""
