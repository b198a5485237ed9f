"""The tracking of a launch: runs on the main process only, runs that are reopened, and finding runs again."""

from __future__ import annotations

import re
import signal
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import QUIET
from stores import DEAD, UPLOADS, FailingClient, Store, copy_store, new_run, open_store, points, status

from runner.config.schema import Experiment
from runner.config.tree import from_tree
from runner.tracking.interrupted_runs import STATE_FOLDER, RunRecord, list_interrupted_runs, write_record
from runner.tracking.run_lookup import download_artifact, find_run
from runner.tracking.sessions import REPRODUCED_RUN, TrackingSession, reproduced_run
from runner.tracking.tracker import Tracker
from runner.utils.errors import UserError
from runner.utils.signals import Interrupted

TRAINED = {"runner.manifest": "digest"}
"""Tags of a run that has trained."""


@pytest.fixture
def store(mlflow_store: Store) -> Store:
    return mlflow_store


@pytest.fixture
def experiment(store: Store) -> Experiment:
    tracking = {"root": str(store[0].root), "system_metrics": False}
    return from_tree({"name": "small", "data": {"kind": "digits"}, "tracking": tracking})


@pytest.fixture
def session(experiment: Experiment) -> TrackingSession:
    return TrackingSession(experiment, None, QUIET)


# Sessions


def test_other_processes_track_nothing(experiment: Experiment, store: Store) -> None:
    other: Any = SimpleNamespace(is_main_process=False)
    session = TrackingSession(experiment, other, QUIET)
    with session.start_run("a run") as tracker:
        tracker.log_metrics({"loss": 1.0})
    assert type(tracker) is Tracker
    assert session.client is None
    assert store[1].search_runs(["0"]) == []


def test_a_session_closes_runs_of_dead_processes(experiment: Experiment, store: Store) -> None:
    run_id = new_run(store, **DEAD.tags())
    TrackingSession(experiment, None, QUIET)
    assert status(store[1], run_id) == "KILLED"


@pytest.mark.parametrize("server_away", [False, True])
def test_a_run_that_was_told_to_stop_is_free_for_another_host(
    session: TrackingSession, store: Store, monkeypatch: pytest.MonkeyPatch, server_away: bool
) -> None:
    """It delivers what the first host could not."""
    monkeypatch.setattr("runner.tracking.mlflow_tracker.STOPPED_UPLOAD_TIMEOUT", 1.0 if server_away else 60.0)
    if server_away:
        session.client = FailingClient(store[1], 10**9, UPLOADS)  # type: ignore[assignment]
    with suppress(Interrupted), session.start_run("a run") as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
        write_record(tracker.local_folder(STATE_FOLDER), RunRecord("a run", {}))
        assert list_interrupted_runs(store[0])[0].journal.alive
        raise Interrupted(signal.SIGTERM)
    monkeypatch.setattr("runner.tracking.journal.this_host", lambda: "pod-b")
    (run,) = list_interrupted_runs(store[0])
    assert (run.run_id, run.journal.alive) == (tracker.run_id, False)
    assert points(store[1], run.run_id, "loss") == ([] if server_away else [(1, 1.0)])
    session.client = store[1]
    with session.start_run("a run", resume=run.run_id) as tracker:
        tracker.log_metrics({"loss": 0.5}, 2)
    assert points(store[1], run.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert status(store[1], run.run_id) == "FINISHED"


def test_a_finished_run_is_reopened(session: TrackingSession, store: Store) -> None:
    with session.start_run("a run") as tracker:
        tracker.log_metrics({"loss": 1.0}, 1)
    with session.reopen_run(tracker.run_id, "a run") as again:
        again.log_metrics({"loss": 0.5}, 2)
    assert again.run_id == tracker.run_id
    assert points(store[1], tracker.run_id, "loss") == [(1, 1.0), (2, 0.5)]
    assert status(store[1], tracker.run_id) == "FINISHED"


def test_a_reproduction_names_its_original(
    session: TrackingSession, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert reproduced_run() == ("", "")
    monkeypatch.setenv(REPRODUCED_RUN, "0123 a name of two words")
    assert reproduced_run() == ("0123", "a name of two words")
    with session.start_run("again") as tracker:
        pass
    assert store[1].get_run(tracker.run_id).data.tags["runner.reproduces"] == "0123"


# Finding runs


def test_runs_are_found_by_id_start_of_id_name_or_age(session: TrackingSession, store: Store) -> None:
    client = store[1]
    with session.start_run("older") as older, session.start_run('it\'s "newer"') as newer:
        older.set_tags(TRAINED)
        newer.set_tags(TRAINED)
    assert find_run(client, 'it\'s "newer"').run_id == newer.run_id
    for reference in (older.run_id, older.run_id[:8], "older"):
        found = find_run(client, reference)
        assert (found.run_id, found.name, found.status) == (older.run_id, "older", "FINISHED")
    assert find_run(client, "latest").run_id == newer.run_id


def test_a_reference_to_no_run_or_several_is_refused(session: TrackingSession, store: Store) -> None:
    client = store[1]
    for reference in ("latest", "abcd"):
        with pytest.raises(UserError, match="There are no runs yet"):
            find_run(client, reference)
    runs = []
    for _ in range(2):
        with session.start_run("same name") as tracker:
            runs.append(tracker.run_id[:8])
    with pytest.raises(UserError, match=f"2 runs match 'same name'.*: {runs[1]}, {runs[0]} "):
        find_run(client, "same name")
    with pytest.raises(UserError, match=r"There is no run 'abc'.*first 4 or more"):
        find_run(client, "abc")


def test_the_name_of_an_experiment_is_refused_with_its_newest_run(
    session: TrackingSession, store: Store, experiment: Experiment
) -> None:
    client, name = store[1], experiment.name
    with session.start_run("older"), session.start_run("newer") as newer:
        pass
    start = f"{name!r} is an experiment, not a run; give "
    end = f"one of its runs: the newest is {newer.run_id[:8]} (./launch.sh runs lists them)."
    for model in (False, True):  # no model is registered
        with pytest.raises(UserError, match=re.escape(start + end)):
            find_run(client, name, model)
    client.create_registered_model(name)
    client.create_model_version(name, "source", newer.run_id)
    client.set_registered_model_alias(name, "champion", "1")
    with pytest.raises(UserError, match=re.escape(f"{start}{name}@champion or {end}")):
        find_run(client, name, model=True)
    with pytest.raises(UserError, match=re.escape(start + end)):
        find_run(client, name)


def test_the_latest_run_is_the_newest_finished_training_of_its_own(
    session: TrackingSession, store: Store
) -> None:
    client = store[1]
    with session.start_run("folds=3") as parent, session.start_run("fold 0", parent) as child:
        parent.set_tags(TRAINED)
        parent.log_params({"repeat": 1})
        child.set_tags(TRAINED)
    with pytest.raises(UserError, match=r"of --repeat and of cross-validations \(--split\.folds\): name one"):
        find_run(client, "latest")
    with session.start_run("trained") as trained:
        trained.set_tags(TRAINED)
    with session.start_run("repeated") as parent, session.start_run("seed 1", parent) as child:
        child.set_tags(TRAINED)
    with session.start_run("study") as study, session.start_run("confirmation", study) as child:
        study.set_tags({**TRAINED, "runner.study": "s"})
        child.set_tags(TRAINED)
    with suppress(KeyboardInterrupt), session.start_run("stopped") as stopped:
        stopped.set_tags(TRAINED)
        raise KeyboardInterrupt
    with session.start_run("running") as running:
        running.set_tags(TRAINED)
        assert find_run(client, "latest").run_id == trained.run_id


def test_a_missing_artifact_is_one_sentence(session: TrackingSession, store: Store, tmp_path: Path) -> None:
    client = store[1]
    with session.start_run("a run") as tracker:
        tracker.log_text("note.txt", "hello")
    run = find_run(client, tracker.run_id)
    assert download_artifact(client, run, "note.txt", tmp_path).read_text() == "hello"
    with pytest.raises(UserError, match=f"Run {tracker.run_id[:8]} .* has no missing.txt"):
        download_artifact(client, run, "missing.txt", tmp_path)


def test_two_stores_have_their_own_runs(
    session: TrackingSession, mlflow_template: Path, tmp_path: Path
) -> None:
    with session.start_run("here"):
        pass
    _, client = open_store(copy_store(mlflow_template, tmp_path / "other"))
    with pytest.raises(UserError, match="There are no runs yet"):
        find_run(client, "here")
