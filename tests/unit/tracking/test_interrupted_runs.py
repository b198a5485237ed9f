"""The record that resuming needs: written, read, and refused when damaged."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from stores import dead_owner, end, resumable

from runner.config.tree import from_tree
from runner.tracking.interrupted_runs import (
    RunRecord,
    list_interrupted_runs,
    read_interrupted_run,
    resolved_settings,
    write_record,
)
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.utils.hashing import digest

RECORD = RunRecord(
    "a run", {"optim": {"lr": 0.1}}, {"train.precision": "bf16", "features.compile": True}, "parent", 3, True
)


@pytest.fixture
def server(tmp_path: Path) -> TrackingServer:
    return TrackingServer("nowhere", tmp_path)


def journal_of(server: TrackingServer, run_id: str) -> Journal:
    return Journal.create(server.journals, dead_owner(server.uri, run_id))


def test_a_record_is_read_back(server: TrackingServer) -> None:
    journal = journal_of(server, "0123456789")
    write_record(journal.folder / "state", RECORD)
    run = read_interrupted_run(journal)
    assert run is not None
    assert run.record == RECORD
    assert run.run_id == "0123456789"
    assert run.state == journal.folder / "state"
    assert run.label == "01234567 (a run)"


def test_a_changed_byte_is_noticed(server: TrackingServer) -> None:
    journal = resumable(journal_of(server, "run"), {"a": 1})
    path = journal.folder / "state" / "run.json"
    assert read_interrupted_run(journal) is not None
    path.write_text(path.read_text().replace('{"a": 1}', '{"a": 2}'))
    assert read_interrupted_run(journal) is None


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"digest": 1}', "[" * 100_000])
def test_a_damaged_record_is_none(server: TrackingServer, content: str) -> None:
    journal = resumable(journal_of(server, "run"))
    (journal.folder / "state" / "run.json").write_text(content)
    assert read_interrupted_run(journal) is None


@pytest.mark.parametrize("value", ["x", True, "auto", None])
def test_a_resolved_setting_of_another_type_is_refused(server: TrackingServer, value: object) -> None:
    journal = journal_of(server, "run")
    content = {**dataclasses.asdict(RECORD), "resolved": {"features.batch_size": value}}
    state = journal.folder / "state"
    state.mkdir()
    (state / "run.json").write_text(json.dumps({**content, "digest": digest(content)}))
    assert read_interrupted_run(journal) is None


def test_settings_that_are_still_auto_are_not_resolved() -> None:
    experiment = from_tree({"data": {"kind": "digits"}})
    assert "features.batch_size" not in resolved_settings(experiment)
    features = dataclasses.replace(experiment.features, batch_size=16)
    assert resolved_settings(dataclasses.replace(experiment, features=features))["features.batch_size"] == 16


def test_interrupted_runs_are_listed_newest_first(server: TrackingServer) -> None:
    older, newer, finished, damaged = (
        resumable(journal_of(server, run_id)) for run_id in ("older", "newer", "finished", "damaged")
    )
    finished.append(end("FINISHED"))
    (damaged.folder / "state" / "run.json").write_text("{")
    journal_of(server, "without a state")
    os.utime(older.folder / "state" / "run.json", (1, 1))
    assert [run.run_id for run in list_interrupted_runs(server)] == ["newer", "older"]
    assert newer.resumable
