"""Resuming takes a run over from its dead process: runs that cannot be resumed are passed over, each is taken once."""

from __future__ import annotations

import dataclasses
import os

import pytest
from helpers import QUIET
from stores import (
    RecordingTerminal,
    Store,
    journal_of_dead_process,
    new_run,
    resumable,
)

from runner.config.parser import Options
from runner.config.schema import Experiment
from runner.config.tree import as_tree, from_tree, override
from runner.tracking.interrupted_runs import RunRecord, read_interrupted_run, write_record
from runner.tracking.journal import Journal, Owner
from runner.tracking.resume_lookup import find_interrupted_run
from runner.training.resume import ResumePoint, apply_resume_point, resolve
from runner.utils.errors import UserError


class OneProcess:
    """The state of a launch with one process."""

    is_main_process = True


@pytest.fixture
def store(mlflow_store: Store) -> Store:
    return mlflow_store


@pytest.fixture
def experiment(store: Store) -> Experiment:
    root = {"root": str(store[0].root)}
    return from_tree({"name": "takeover", "data": {"kind": "digits"}, "tracking": root})


def resume(
    experiment: Experiment, options: Options, terminal: RecordingTerminal | None = None
) -> ResumePoint:
    return resolve(experiment, options, OneProcess(), terminal or QUIET)[1]  # type: ignore[arg-type]


REASONS = {"deleted": "was deleted in MLflow", "finished": "has finished", "missing": "is not in MLflow"}


@pytest.mark.parametrize("state", REASONS)
def test_a_run_that_cannot_be_resumed_is_passed_over(
    store: Store, experiment: Experiment, state: str
) -> None:
    client = store[1]
    run_id = "0" * 32 if state == "missing" else new_run(store)
    journal = resumable(journal_of_dead_process(store, run_id), as_tree(experiment))
    if state == "deleted":
        client.delete_run(run_id)
    elif state == "finished":
        client.set_terminated(run_id, "FINISHED")
    terminal = RecordingTerminal()
    assert resume(experiment, Options(resume="auto"), terminal).run_id == ""
    assert REASONS[state] in terminal.warnings[0]
    with pytest.raises(UserError, match=REASONS[state]):
        resume(experiment, Options(resume=run_id))
    assert journal.events() == []


def test_the_next_run_is_resumed_if_another_process_has_the_newest(
    store: Store, experiment: Experiment
) -> None:
    older, newer = (
        resumable(journal_of_dead_process(store, new_run(store)), as_tree(experiment)) for _ in range(2)
    )
    os.utime(older.folder / "state" / "run.json", (1, 1))
    for expected in (newer, older):
        assert resume(experiment, Options(resume="auto")).run_id == expected.owner.run_id
        (taken,) = (
            each for each in Journal.find_all(store[0].journals) if each.owner.run_id == expected.owner.run_id
        )
        assert taken.alive
    assert resume(experiment, Options(resume="auto")).run_id == ""


@pytest.mark.parametrize(
    ("split", "repeat", "ending"),
    [
        ({}, 1, " at the beginning: it had no snapshot yet"),
        ({"folds": 3, "fold": 1}, 1, " at the beginning: it had no snapshot yet"),
        ({"folds": 3}, 1, ": its finished parts are kept"),
        ({}, 2, ": its finished parts are kept"),
    ],
)
def test_what_goes_on_is_said(
    store: Store, experiment: Experiment, split: dict[str, int], repeat: int, ending: str
) -> None:
    experiment = override(experiment, {f"split.{name}": value for name, value in split.items()})
    resumable(journal_of_dead_process(store, new_run(store)), as_tree(experiment), repeat=repeat)
    terminal = RecordingTerminal()
    resume(experiment, Options(resume="auto", repeat=repeat), terminal)
    (line,) = terminal.lines
    assert line.startswith("resuming run ")
    assert line.endswith(f"(some run){ending}")


def test_a_dry_run_takes_nothing_over(store: Store, experiment: Experiment) -> None:
    journal = resumable(journal_of_dead_process(store, new_run(store)), as_tree(experiment))
    assert resume(experiment, Options(resume="auto", dry_run=True)).run_id == journal.owner.run_id
    (unchanged,) = Journal.find_all(store[0].journals)
    assert not unchanged.alive


def test_a_resolved_setting_out_of_range_is_refused(store: Store, experiment: Experiment) -> None:
    server, _ = store
    journal = Journal.create(server.journals, Owner.this_process(server.uri, "run"))
    record = RunRecord("some run", as_tree(experiment), {"features.batch_size": 0})
    write_record(journal.folder / "state", record)
    run = read_interrupted_run(journal)
    assert run is not None
    assert dataclasses.asdict(run.record) == dataclasses.asdict(record)
    point = ResumePoint(run.record.requested, run.run_id, run.record.name, resolved=run.record.resolved)
    with pytest.raises(UserError, match=r"features\.batch_size"):
        apply_resume_point(experiment, point)


def test_the_reason_why_a_run_cannot_be_resumed_is_printed(store: Store) -> None:
    server, client = store
    run_id = new_run(store)
    with pytest.raises(UserError, match="has no saved state in"):
        find_interrupted_run(server, run_id[:8])
    client.set_terminated(run_id, "FINISHED")
    with pytest.raises(UserError, match="has finished and cannot be resumed"):
        find_interrupted_run(server, run_id[:8])
    with pytest.raises(UserError, match="There is no interrupted run"):
        find_interrupted_run(server, "0" * 8)
