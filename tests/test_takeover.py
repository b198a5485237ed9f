"""Who has a run: nobody closes, takes, ends or removes what is somebody else's, and nothing recorded is lost by it."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import QUIET
from test_tracking import (
    EXPERIMENT,
    Heard,
    Listener,
    dead,
    journal_of_dead,
    journals,
    metric,
    new_run,
    no_tracking_uri,
    points,
    store,
)

from runner.cli import doctor, sync
from runner.config.parser import Options
from runner.config.schema import DataConfig, Experiment
from runner.config.tree import as_tree
from runner.tracking import interrupted_runs, uploader
from runner.tracking.journal import HEARTBEAT_TIMEOUT, REMOVED_SUFFIX, Journal, Owner, current_owner, now_ms
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.tracker import MlflowTracker, tracked
from runner.tracking.uploader import Uploader, recover_runs
from runner.training.resume import apply_resume_point, resolve
from runner.utils.errors import DivergedError, UserError
from runner.utils.exit_status import run_main
from runner.utils.signals import Interrupted

__all__ = ["no_tracking_uri", "store"]  # fixtures
ShardStore = tuple[TrackingServer, Any]


def of_living(journal: Journal) -> None:
    """Let this process be the owner."""
    owner = current_owner(journal.owner.uri, journal.owner.run_id)
    (journal.folder / "owner.json").write_text(json.dumps(dataclasses.asdict(owner)))


def with_state(journal: Journal, **told: Any) -> Journal:
    interrupted_runs.describe(journal.folder / "state", "some run", told.pop("asked", {}), None, **told)
    return journal


def end(status: str = "KILLED") -> dict[str, Any]:
    return {"kind": "end", "status": status, "time": now_ms()}


# Delivering what others have left


def test_a_run_that_was_taken_over_meanwhile_is_not_closed(
    store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was dead when the journals were listed; delivering another one took its time."""
    place, client = store
    journal = journal_of_dead(store, new_run(store))
    listed = Journal.find(place.root / "journals")
    of_living(journal)
    monkeypatch.setattr(Journal, "find", classmethod(lambda _cls, _root: listed))
    recover_runs(place, client, terminal := Heard())
    monkeypatch.undo()
    assert journal.events() == []
    assert terminal.notes == []
    assert client.get_run(journal.owner.run_id).info.status == "RUNNING"
    journal.remove()


def test_an_end_that_somebody_else_wrote_ends_no_delivery(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, current_owner("nowhere", "run"))
    shipper = Uploader(journal, listener := Listener())  # type: ignore[arg-type]
    shipper.start()
    for step, event in enumerate((end(), end("FINISHED")), 1):
        journal.append(metric("loss", 1.0, step))
        journal.append(event)
        shipper.wake()
        until = time.monotonic() + 10
        while journal.pending() and time.monotonic() < until:
            time.sleep(0.01)
        assert shipper.is_alive()
    assert shipper.close() is True
    assert listener.heard == ["metric loss 1", "end KILLED", "metric loss 2", "end FINISHED"]


def test_a_thread_that_is_over_has_not_delivered_what_waits(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, current_owner("nowhere", "run"))
    shipper = Uploader(journal, Listener())  # type: ignore[arg-type]
    shipper.start()
    assert shipper.close() is True
    journal.append(metric("loss", 1.0, 1))
    assert shipper.close(0.1) is False


def test_a_delivery_by_another_process_is_not_disturbed(store: ShardStore) -> None:
    place, client = store
    journal = journal_of_dead(store, new_run(store))
    with Journal.locked(journal.folder):
        recover_runs(place, client, QUIET)
        assert journal.events() == []
    recover_runs(place, client, QUIET)
    assert client.get_run(journal.owner.run_id).info.status == "KILLED"
    assert journal.owner.run_id not in journals(place)


def test_a_lock_does_not_bring_a_journal_back(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path, current_owner("nowhere", "run"))
    journal.remove()
    with Journal.locked(journal.folder) as found:
        assert found is None
    assert list(tmp_path.iterdir()) == []


def test_a_silent_run_of_another_host_is_closed(store: ShardStore) -> None:
    """A container that was started again has another name."""
    place, client = store
    run_id = new_run(store)
    journal = Journal.create(place.root / "journals", Owner(place.uri, run_id, "elsewhere", 1, 1.0))
    journal.append(metric("loss", 0.5, 1))
    recover_runs(place, client, QUIET)
    assert client.get_run(run_id).info.status == "RUNNING", "it may live"
    silent = time.time() - 2 * HEARTBEAT_TIMEOUT
    os.utime(journal.folder / "owner.json", (silent, silent))
    assert sync.waiting(place.root)
    recover_runs(place, client, QUIET)
    assert client.get_run(run_id).info.status == "KILLED"
    assert points(client, run_id, "loss") == [(1, 0.5)]


def test_a_failure_that_only_mlflow_heard_of_stays_one(store: ShardStore) -> None:
    """The disk was full: there was no room for the end in the journal."""
    place, client = store
    run_id = new_run(store)
    client.set_tag(run_id, "runner.reason", "The disk is full.")
    client.set_terminated(run_id, "FAILED")
    journal_of_dead(store, run_id)
    recover_runs(place, client, QUIET)
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["runner.reason"]) == ("FAILED", "The disk is full.")


def test_tags_that_a_person_changed_do_no_harm(store: ShardStore) -> None:
    place, client = store
    pid, started = dead()
    tags = {"runner.host": current_owner("", "").host, "runner.pid": "mine", "runner.started": str(started)}
    run_id = new_run(store, **tags)
    recover_runs(place, client, QUIET)
    assert client.get_run(run_id).info.status == "RUNNING"
    client.set_tag(run_id, "runner.pid", str(pid))
    recover_runs(place, client, QUIET)
    assert client.get_run(run_id).info.status == "KILLED"


def test_a_file_that_was_written_anew_while_it_was_sent_stays(
    store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = store
    journal = journal_of_dead(store, new_run(store))
    path = journal.artifact_path("checkpoints/best.safetensors")
    path.write_text("old")
    journal.append({"kind": "artifact", "file": "checkpoints/best.safetensors", "folder": "checkpoints"})
    log = client.log_artifact

    def renewing(*words: Any) -> None:
        log(*words)
        fresh = path.with_name("fresh")
        fresh.write_text("new")
        fresh.replace(path)

    monkeypatch.setattr(client, "log_artifact", renewing)
    uploader.deliver(journal, client)
    assert path.read_text() == "new"
    journal.remove()


# Taking a run over


def test_a_claim_is_for_dead_runs_that_can_go_on(tmp_path: Path) -> None:
    mine = current_owner("nowhere", "run")
    with pytest.raises(FileNotFoundError):
        Journal.take_over(tmp_path, mine)
    assert list(tmp_path.iterdir()) == []
    pid, started = dead()
    journal = Journal.create(tmp_path, Owner("nowhere", "run", mine.host, pid, started))
    with pytest.raises(FileNotFoundError):  # there is no state
        Journal.take_over(tmp_path, mine)
    with_state(journal)
    Journal.take_over(tmp_path, mine)
    assert Journal.take_over(tmp_path, mine).owner == mine, "whose it is may take it again"
    other = dataclasses.replace(mine, pid=os.getppid())
    with pytest.raises(FileExistsError):
        Journal.take_over(tmp_path, other)
    journal.append(end("FINISHED"))
    with pytest.raises(FileNotFoundError):
        Journal.take_over(tmp_path, mine)


def test_one_of_many_that_claim_at_once_has_it(tmp_path: Path) -> None:
    pid, started = dead()
    mine = current_owner("nowhere", "run")
    with_state(Journal.create(tmp_path, Owner("nowhere", "run", mine.host, pid, started)))
    owners = [Owner("nowhere", "run", "elsewhere", number, 1.0) for number in range(1, 9)]
    had: list[Owner] = []

    def claim(owner: Owner) -> None:
        try:
            had.append(Journal.take_over(tmp_path, owner).owner)
        except FileExistsError:
            return

    threads = [threading.Thread(target=claim, args=(owner,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(had) == 1
    assert Journal.find(tmp_path)[0].owner == had[0]


class Alone:
    """The only process of a launch."""

    is_main_process = True


@pytest.fixture
def experiment(store: ShardStore) -> Experiment:
    tree = Experiment(data=DataConfig(kind="digits"))
    return dataclasses.replace(
        tree, tracking=dataclasses.replace(tree.tracking, root=str(store[0].root)), name="takeover"
    )


@pytest.mark.parametrize("how", ["deleted", "finished", "not there"])
def test_a_run_that_will_never_go_on_is_passed_over(store: ShardStore, experiment: Experiment, how: str) -> None:
    _, client = store
    run_id = "0" * 32 if how == "not there" else new_run(store)
    journal = with_state(journal_of_dead(store, run_id), asked=as_tree(experiment))
    if how == "deleted":
        client.delete_run(run_id)
    elif how == "finished":
        client.set_terminated(run_id, "FINISHED")
    said = {"deleted": "was deleted in MLflow", "finished": "has finished", "not there": "is not in MLflow"}
    heard = Heard()
    _, start = resolve(experiment, Options(resume="auto"), Alone(), heard)  # type: ignore[arg-type]
    assert start.run_id == ""
    assert said[how] in heard.notes[0]
    with pytest.raises(UserError, match=said[how]):
        resolve(experiment, Options(resume=run_id), Alone(), heard)  # type: ignore[arg-type]
    assert journal.events() == []
    journal.remove()


def test_the_next_run_is_taken_where_another_process_has_the_newest(
    store: ShardStore, experiment: Experiment
) -> None:
    older, newer = (
        with_state(journal_of_dead(store, new_run(store)), asked=as_tree(experiment)) for _ in range(2)
    )
    os.utime(older.folder / "state" / "run.json", (1, 1))
    for expected in (newer, older, None):
        _, start = resolve(experiment, Options(resume="auto"), Alone(), QUIET)  # type: ignore[arg-type]
        assert start.run_id == (expected.owner.run_id if expected else "")
        if expected:
            assert Journal.at(expected.folder).alive  # type: ignore[union-attr]
    for journal in (older, newer):
        journal.remove()


def test_a_dry_run_takes_nothing(store: ShardStore, experiment: Experiment) -> None:
    journal = with_state(journal_of_dead(store, new_run(store)), asked=as_tree(experiment))
    _, start = resolve(experiment, Options(resume="auto", dry_run=True), Alone(), QUIET)  # type: ignore[arg-type]
    assert start.run_id == journal.owner.run_id
    assert not Journal.at(journal.folder).alive  # type: ignore[union-attr]
    journal.remove()


def test_a_run_of_several_is_not_gone_on_with_alone(store: ShardStore) -> None:
    place, _ = store
    journal = with_state(journal_of_dead(store, new_run(store)), parent="f" * 32)
    with pytest.raises(UserError, match="one of several of run ffffffff"):
        interrupted_runs.find_interrupted_run(place, journal.owner.run_id)
    journal.remove()


@pytest.mark.parametrize("value", ["x", 0, True, "auto"])
def test_what_a_device_is_said_to_have_decided_is_checked(tmp_path: Path, value: object) -> None:
    mine = current_owner("nowhere", "run")
    experiment = Experiment(data=DataConfig(kind="digits"))
    journal = with_state(Journal.create(tmp_path, mine), asked=as_tree(experiment))
    told = json.loads((journal.folder / "state" / "run.json").read_text())
    del told["digest"]
    interrupted_runs.write_record(journal.folder / "state", {**told, "decided": {"features.batch_size": value}})
    known = interrupted_runs.read_interrupted_run(journal)
    if value != 0:
        assert known is None
        return
    assert known is not None
    from runner.training.resume import ResumePoint

    with pytest.raises(UserError, match=r"features\.chunk"):
        apply_resume_point(experiment, (known.decided, ResumePoint(known.asked, known.run_id, known.name)))


def test_a_changed_byte_of_what_a_run_was_asked_is_noticed(tmp_path: Path) -> None:
    journal = with_state(Journal.create(tmp_path, current_owner("nowhere", "run")), asked={"a": 1})
    path = journal.folder / "state" / "run.json"
    whole = path.read_text()
    assert interrupted_runs.read_interrupted_run(journal) is not None
    path.write_text(whole.replace('{"a": 1}', '{"a": 2}'))
    assert interrupted_runs.read_interrupted_run(journal) is None


def test_why_a_run_cannot_go_on_is_said(store: ShardStore) -> None:
    place, client = store
    run_id = new_run(store)
    with pytest.raises(UserError, match="has left nothing in"):
        interrupted_runs.find_interrupted_run(place, run_id[:8])
    client.set_terminated(run_id, "FINISHED")
    with pytest.raises(UserError, match="has finished, and cannot go on"):
        interrupted_runs.find_interrupted_run(place, run_id[:8])
    journal = with_state(journal_of_dead(store, new_run(store)))
    (journal.folder / "state" / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        interrupted_runs.find_interrupted_run(place, journal.owner.run_id[:8])
    journal.remove()


def test_a_run_whose_database_was_moved_is_told_of(store: ShardStore, tmp_path: Path) -> None:
    place, _ = store
    pid, started = dead()
    gone = Owner(f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}", "e" * 32, current_owner("", "").host, pid, started)
    journal = with_state(Journal.create(place.root / "journals", gone))
    journal.append(end())
    journal.mark_sent((journal.folder / "events.jsonl").stat().st_size)
    findings = doctor.examine(place, tmp_path, False, QUIET)
    (told,) = [each.what for each in findings if each.where == str(journal.folder)]
    assert str(tmp_path / "gone") in told
    journal.remove()


# What is said of the way on


@pytest.mark.parametrize(
    ("error", "parent", "said"),
    [
        (Interrupted(15), None, "./launch.sh train --resume"),
        (DivergedError("The loss is nan."), None, "--branch"),
        (Interrupted(15), "parent", ""),
    ],
    ids=["stopped", "diverged", "one of several"],
)
def test_the_way_on_is_one_that_is_open(
    store: ShardStore, error: BaseException, parent: str | None, said: str
) -> None:
    place, client = store
    parent = parent and new_run(store)
    heard = Heard()

    def run() -> None:
        with tracked(place, client, EXPERIMENT, "ends", heard, parent) as tracker:
            with_state(tracker.journal)
            raise error

    with pytest.raises(type(error)):
        run()
    hints = [note for note in heard.notes if "--resume" in note]
    assert len(hints) == bool(said)
    assert all(said in note for note in hints)


# The doctor


def old(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (1, 1))


@pytest.mark.parametrize("content", ["", "{", '{"pid": "x"}', "[]"])
def test_records_without_an_owner_are_not_thrown_away(
    store: ShardStore, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    place, _ = store
    journal = journal_of_dead(store, new_run(store))
    journal.append(metric("loss", 0.5, 1))
    (journal.folder / "owner.json").write_text(content)
    rubbish = [place.root / "journals" / name for name in ("empty", f"some{REMOVED_SUFFIX}")]
    for folder in rubbish:
        folder.mkdir()
    (rubbish[1] / "events.jsonl").write_text("")
    for folder in (*rubbish, journal.folder):
        old(folder)
    words = ["--tracking.root", str(place.root), "--cache", str(place.root / "cache")]
    assert run_main(lambda: doctor.main([*words, "--json"])) == 1
    (left,) = [each for each in json.loads(capsys.readouterr().out)["findings"] if not each["done"]]
    assert left["where"] == str(journal.folder)
    assert "owner.json" in left["what"]
    assert len((journal.folder / "events.jsonl").read_text().splitlines()) == 1
    assert [folder.exists() for folder in rubbish] == [False, False]
    assert run_main(lambda: sync.main(words[:2])) == 0, "nobody can say whose it is"
    journal.remove()


def test_samples_of_the_systems_use_end_no_thread(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.tracking import tracker as module

    place, client = store
    failed = threading.Event()

    def full(*_: object) -> None:
        failed.set()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "SYSTEM_INTERVAL", 0.05)
    with tracked(place, client, EXPERIMENT, "watched", QUIET) as tracker:
        watch = module.SystemWatch(tracker)
        with monkeypatch.context() as patch:
            patch.setattr(MlflowTracker, "_record", full)
            watch.start()
            assert failed.wait(20)
        until = time.monotonic() + 20
        while not any("system/" in str(event) for event in tracker.journal.events()):
            assert time.monotonic() < until, "it has not gone on"
            time.sleep(0.05)
        watch.stop()
