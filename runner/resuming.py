"""Going on with an interrupted run: what all processes of a launch agree on before anything is set up."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list

from runner import snapshot
from runner.errors import UserError
from runner.experiment import Experiment, as_tree
from runner.prepared import Prepared
from runner.server import server
from runner.settings import Options
from runner.snapshot import Snapshot
from runner.terminal import Terminal
from runner.unfinished import Unfinished, asked_for, newest


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
        run = asked_for(place, experiment, options.resume, options.repeat, options.branch)
        found = None if run is None else told(run, options.branch, terminal)
        if run is None:
            terminal.line("no interrupted run of this experiment: beginning a new one")
    return settled(experiment, broadcast_object_list([found])[0])


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
    asked = {**asked, "seed": {**asked["seed"], "fit": experiment.seed.fit}}
    found = None
    if accelerator.is_main_process:
        run = newest(server(experiment.tracking.root), asked, parent=parent)
        found = None if run is None else told(run, False, terminal)
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
    """See that the images and the frozen weights are those of the interrupted run.

    Args:
        start: With the snapshot to go on from.
        ready: What the run has now.
        now: The `identity_of` that.
        terminal: Hears of what changes last digits only.

    Raises `UserError` where they are not.
    """
    assert start.snapshot is not None  # noqa: S101 (for types: asked for before)
    then, whose = start.snapshot.about, f"run {start.run_id[:8]}"
    if not start.branch and then.get("manifest") != now["manifest"]:
        raise UserError(
            f"The images in {ready.manifest.root} are not those that {whose} was interrupted on; make the folder what"
            " it was, name it with --data.root, or begin a new run."
        )
    if not start.branch and then.get("frozen") != now["frozen"]:
        raise UserError(
            f"The frozen weights are not those of {whose}: the file that network.weights names has changed; restore"
            " it, or begin a new run."
        )
    for name in ("processes", "threads"):
        if then.get(name) != now[name]:
            terminal.warn(
                f"{then.get(name)} {name} before, {now[name]} now: sums are taken in another order, and may differ in"
                " their last digits"
            )
