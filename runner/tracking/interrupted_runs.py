"""Runs that were interrupted: which there are, whether one is of this experiment, and what it takes to go on.

What a run needs for that lies in its journal's folder, under `state/`: `run.json` says what it was asked to do, the
snapshots beside it where it was. It goes with the journal once the run has finished. No torch is needed to find one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner.config.schema import Experiment, as_tree, dump, flatten
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import Server, server
from runner.utils.atomic_files import write_text
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.redaction import redacted
from runner.utils.text import brief

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATE = "state"
AUTO = "auto"
HARMLESS = (
    "data.root",
    "data.download",
    "data.workers",
    "features.store",
    "features.memory",
    "features.cap",
    "checkpoints.*",
    "tracking.*",
    "cache",
)
"""Settings that decide no figure: a run may go on with others. The images themselves are compared by content."""
SHOWN = 8
"""Differences that a sentence names."""
DECIDED = {"train.precision": str, "features.batch_size": int, "features.compile": bool}
"""Settings that were left to the device, and stay as it had decided."""


@dataclass(frozen=True)
class Unfinished:
    """An interrupted run, as `run.json` tells of it."""

    journal: Journal
    name: str
    asked: dict[str, Any]
    """The experiment's tree, as it was asked for."""
    decided: dict[str, Any]
    """What was left to the device, by dotted name."""
    diverged: bool
    parent: str
    """Id of the run that it is a child of; empty: it is none."""
    repeat: int
    """Fit seeds that it trains as its children; 1: it is trained itself."""

    @property
    def run_id(self) -> str:
        """MLflow's id of the run."""
        return self.journal.owner.run_id

    @property
    def state(self) -> Path:
        """The folder of its snapshots."""
        return self.journal.folder / STATE

    @property
    def called(self) -> str:
        """For a person."""
        return f"{self.run_id[:8]} ({brief(self.name, 100)})"


def describe(
    state: Path,
    name: str,
    asked: dict[str, Any],
    decided: Experiment | None,
    parent: str = "",
    repeat: int = 1,
    diverged: bool = False,
) -> None:
    """Write `run.json` into a run's state folder; the arguments are as in `Unfinished`, `decided` None before that."""
    tree = {} if decided is None else flatten(as_tree(decided))
    told = {
        "name": name,
        "asked": asked,
        "decided": {name: tree[name] for name, kind in DECIDED.items() if _is_decided(tree.get(name), kind)},
        "parent": parent,
        "repeat": repeat,
        "diverged": diverged,
    }
    seal(state, told)


def seal(state: Path, told: dict[str, Any]) -> None:
    """Write `run.json`, with a digest of what it tells."""
    write_text(state / "run.json", json.dumps({**told, "digest": digest(told)}))


def _is_decided(value: object, kind: type) -> bool:
    return type(value) is kind and value != "auto"


def read(journal: Journal) -> Unfinished | None:
    """The interrupted run that a journal is of; None: there is no state of it to go on from, or it is not whole."""
    try:
        told = json.loads((journal.folder / STATE / "run.json").read_text(encoding="utf-8"))
        if told.pop("digest") != digest(told):
            return None
        decided = dict(told["decided"])
        if not all(_is_decided(value, DECIDED[name]) for name, value in decided.items()):
            return None
        return Unfinished(
            journal,
            str(told["name"]),
            dict(told["asked"]),
            decided,
            bool(told["diverged"]),
            str(told["parent"]),
            int(told["repeat"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def all_of(place: Server) -> list[Unfinished]:
    """The interrupted runs with a state under a server's root, the newest first; living ones are among them."""
    found = []
    for journal in Journal.find(place.root / "journals"):
        # One that has finished has records that wait, at most.
        if journal.stays and (run := read(journal)) is not None:
            with suppress(FileNotFoundError):
                found.append(((run.state / "run.json").stat().st_mtime, run))
    return [run for _, run in sorted(found, key=lambda pair: pair[0], reverse=True)]


def fate(client: MlflowClient, run_id: str) -> str:
    """Why a run will never go on, to be said after its name; empty: it may."""
    from mlflow.exceptions import MlflowException

    try:
        info = client.get_run(run_id).info
    except MlflowException as error:
        return "is not in MLflow any more" if error.error_code == "RESOURCE_DOES_NOT_EXIST" else ""
    if info.lifecycle_stage != "active":
        return "was deleted in MLflow"
    return "has finished" if info.status == "FINISHED" else ""


def find(place: Server, reference: str) -> Unfinished:
    """The interrupted run that a person calls so: id, beginning of an id, or name.

    Raises `UserError` where there is none, more than one, it still runs, or it is a child of another one.
    """
    known = all_of(place)
    matching = [each for each in known if reference in (each.run_id, each.name)]
    if not matching and len(reference) >= 4:
        matching = [each for each in known if each.run_id.startswith(reference)]
    if not matching and (why := _why_not(place, reference)):
        raise UserError(f"{why}; begin a new run, without --resume.")
    if len(matching) != 1:
        names = ", ".join(each.called for each in (matching or known)[:5]) or "none"
        what = "no interrupted run" if not matching else f"more than one interrupted run ({len(matching)})"
        raise UserError(
            f"There is {what} {reference!r} in {place.root / 'journals'} (there are: {names}); give the id of one,"
            " auto, or where it lies, by --tracking.root."
        )
    (run,) = matching
    if run.parent:
        raise UserError(
            f"Run {run.called} is one of several of run {run.parent[:8]}; go on with that one, which goes on with it."
        )
    check_over(run)
    return run


def _why_not(place: Server, reference: str) -> str:
    """Why a run that is there cannot go on; empty: there is none of that id or name."""
    from runner.tracking import run_lookup

    for journal in Journal.find(place.root / "journals"):
        if (
            len(reference) >= run_lookup.SHORTEST
            and journal.owner.run_id.startswith(reference)
            and journal.stays
        ):
            return f"{journal.folder / STATE / 'run.json'} is damaged, so that run {reference} cannot go on"
    try:
        place.check_exists()
        run = run_lookup.find(place.connect(), reference)
    except UserError:
        return ""
    if run.status == "FINISHED":
        return f"Run {run.run_id[:8]} ({brief(run.name, 100)}) has finished, and cannot go on"
    return f"Run {run.run_id[:8]} ({brief(run.name, 100)}) has left nothing in {place.root / 'journals'} to go on from"


def check_over(run: Unfinished) -> None:
    """See that nobody works on a run. Raises `UserError` where somebody does."""
    if run.journal.alive:
        owner = run.journal.owner
        raise UserError(
            f"Run {run.called} still runs: process {owner.pid} on {owner.host}; stop it first, or wait."
        )


def of_experiment(
    place: Server, asked: dict[str, Any], repeat: int = 1, parent: str = "", alive: bool = False
) -> list[Unfinished]:
    """The interrupted runs of this very experiment on which nobody works, or `alive` somebody does, newest first.

    Those that diverged are left out: they would diverge again.
    """
    return [
        each
        for each in all_of(place)
        if (each.parent, each.repeat, each.diverged) == (parent, repeat, False)
        and redacted(each.journal.owner.uri) == redacted(place.uri)
        and not differences(each, asked)
        and each.journal.alive == alive
    ]


def differences(run: Unfinished, asked: dict[str, Any]) -> list[str]:
    """The settings that differ and decide figures, in words."""
    then, now = flatten(run.asked), flatten(asked)
    names = [name for name in {**then, **now} if not any(fnmatch(name, each) for each in HARMLESS)]
    differing = [name for name in names if then.get(name) != now.get(name)]
    said = [
        f"{brief(name, 60)} is {now.get(name, 'not set')}, was {brief(str(then.get(name, 'not set')), 80)}"
        for name in differing[:SHOWN]
    ]
    return [*said, f"and {len(differing) - SHOWN} more"] if len(differing) > SHOWN else said


def asked_for(
    place: Server, experiment: Experiment, reference: str, repeat: int, branch: bool
) -> list[Unfinished]:
    """The interrupted runs that `--resume` means, of which the first that can be had counts; only `auto` knows none.

    Raises `UserError` where there is none of that name, it still runs, or it is of another experiment, unless it is
    to branch.
    """
    if reference == AUTO:
        if branch:
            raise UserError("--branch needs a run to go on from: --resume RUN, not auto.")
        return of_experiment(place, as_tree(experiment), repeat)
    run = find(place, reference)
    if redacted(run.journal.owner.uri) != redacted(place.uri):
        raise UserError(
            f"The records of run {run.called} are in {redacted(run.journal.owner.uri)}, not in {redacted(place.uri)};"
            " set MLFLOW_TRACKING_URI as it was then, or move its folder back to where it was."
        )
    if branch:
        if repeat != 1 or run.repeat != 1:
            raise UserError("--branch goes on from one run; it does not go with --repeat.")
        return [run]
    if run.repeat != repeat:
        raise UserError(
            f"Run {run.called} was begun with --repeat {run.repeat}; give the same to go on with it."
        )
    if differing := differences(run, as_tree(experiment)):
        raise UserError(
            f"The experiment is not that of run {run.called}: {'; '.join(differing)}; give the same settings, or"
            " --branch to go on from its state as a new run."
        )
    if run.diverged:
        raise UserError(
            f"Run {run.called} diverged, and would again; change settings (--optim.lr …) and add --branch to go on from"
            " its last good state as a new run."
        )
    return [run]


def words(argv: Sequence[str]) -> list[str]:
    """A command line with the experiment of the run that it goes on with, where it names that run and no experiment.

    Raises `UserError` as `find` does.
    """
    reference = value_of(argv, "--resume")
    named = any(word == "--config" or word.startswith("--config=") for word in argv)
    if not reference or reference == AUTO or reference.startswith("-") or named:
        return list(argv)
    run = find(server(value_of(argv, "--tracking.root") or "mlruns"), reference)
    path = run.state / "experiment.yaml"
    write_text(path, dump(run.asked))
    return ["--config", str(path), *argv]


def value_of(argv: Sequence[str], option: str) -> str | None:
    """The last value that a command line gives an option; None: it gives none."""
    found = None
    for place, word in enumerate(argv):
        name, equals, value = word.partition("=")
        if name == option:
            found = value if equals else next(iter(argv[place + 1 : place + 2]), "")
    return found
