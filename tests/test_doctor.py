"""`runner doctor` and `runner sync`: what is found, told and mended, and what the independent look says afterwards."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from helpers import QUIET
from optuna.trial import TrialState
from test_tracking import dead, metric
from truth import lies

from runner.cli import doctor, sync
from runner.features.shard_store import Store
from runner.study import storage
from runner.tracking import interrupted_runs
from runner.tracking.journal import Journal, Owner, me, now_ms, this_host
from runner.tracking.mlflow_server import Server, server
from runner.tracking.tracker import tracked
from runner.training.snapshot import Snapshot
from runner.utils.errors import guarded

LONG_AGO = time.time() - 2 * doctor.HOUR


@pytest.fixture(autouse=True)
def no_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow itself sets the variable when it is told its store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@dataclass
class Place:
    """A tracking root with a real embedded store, a finished run in it, and a cache with a store of rows."""

    server: Server
    client: Any
    cache: Path
    run_id: str

    @property
    def root(self) -> Path:
        return self.server.root

    @property
    def words(self) -> list[str]:
        return ["--tracking.root", str(self.root), "--cache", str(self.cache)]

    def lies(self) -> list[str]:
        return lies(self.root, self.cache)

    def files(self) -> dict[str, bytes]:
        """All files but those that looking at a database makes."""
        return {
            str(path): path.read_bytes()
            for folder in (self.root, self.cache)
            for path in folder.rglob("*")
            if path.is_file() and not path.name.startswith("mlflow.db-") and path.name != ".lock"
        }

    def begin(self, status: str | None = None, **tags: str) -> str:
        """A new run of MLflow's; one that says RUNNING unless it has a status."""
        run_id = str(
            self.client.create_run(self.server.experiment_id(self.client, "small"), tags=tags).info.run_id
        )
        if status:
            self.client.set_terminated(run_id, status)
        return run_id

    def journal(self, run_id: str, uri: str = "", host: str = "") -> Journal:
        """An empty journal whose owner is dead."""
        pid, started = dead()
        owner = Owner(uri or self.server.uri, run_id, host or this_host(), pid, started)
        return Journal.create(self.root / "journals", owner)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database without runs: creating one takes seconds."""
    root = tmp_path_factory.mktemp("template")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "")
        server(str(root)).connect()
    return root / "mlflow.db"


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Place:
    where = server(str(tmp_path / "mlruns"))
    where.root.mkdir()
    with (
        closing(sqlite3.connect(template)) as source,
        closing(sqlite3.connect(where.root / "mlflow.db")) as copy,
    ):
        source.backup(copy)
    client = where.connect()
    with tracked(where, client, "small", "healthy", QUIET) as tracker:
        for step in (1, 2, 3):
            tracker.metrics({"val/loss": 1 / step}, step)
        tracker.text("note.txt", "hello")
    cache = tmp_path / "cache"
    rows = Store(cache / "features", {"layer": "a"}, {"layer": "a"})
    rows.write(["a:-1", "b:-1"], torch.arange(8.0).reshape(2, 4), 1.0)
    rows.release()
    return Place(where, client, cache, tracker.run_id)


def snapshot_in(state: Path, epoch: int = 0) -> Path:
    state.mkdir(parents=True, exist_ok=True)
    return Snapshot(epoch, 0, epoch, {"learned/a": torch.ones(3)}, {"history": []}).save(state, 5)


def described(journal: Journal) -> None:
    interrupted_runs.describe(journal.folder / "state", "some run", {}, None)


def spoil(path: Path) -> None:
    """Change a byte in the middle of a file's numbers."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.write_bytes(bytes(content))


# What can be wrong: each plants it, and says what is to be told


def a_run_without_a_process(place: Place) -> str:
    pid, started = dead()
    run = place.begin(
        **{"runner.host": this_host(), "runner.pid": str(pid), "runner.started": str(started)}  # type: ignore[arg-type]
    )
    return f"run {run[:8]}: says RUNNING"


def a_journal_without_an_end(place: Place) -> str:
    journal = place.journal(run := place.begin())
    journal.append(metric("val/loss", 0.5, 1))
    with (journal.folder / "events.jsonl").open("ab") as file:
        file.write(b'{"kind": "met')
    return f"run {run[:8]} says RUNNING"


def records_that_wait(place: Place) -> str:
    journal = place.journal(run := place.begin())
    journal.append(metric("val/loss", 0.5, 1))
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    return f"2 records of run {run[:8]} wait"


def a_journal_of_a_finished_run(place: Place) -> str:
    journal = place.journal(place.run_id)
    journal.append({"kind": "end", "status": "KILLED", "time": now_ms()})
    journal.mark_sent((journal.folder / "events.jsonl").stat().st_size)
    snapshot_in(journal.folder / "state")
    described(journal)
    return "has finished"


def a_delivered_journal_without_a_state(place: Place) -> str:
    journal = place.journal(place.run_id)
    journal.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    journal.mark_sent((journal.folder / "events.jsonl").stat().st_size)
    return "holds nothing"


def interrupted(place: Place) -> Journal:
    """The journal of a run that was told to stop, all delivered, with a state to go on from."""
    journal = place.journal(place.begin("KILLED"))
    snapshot_in(journal.folder / "state")
    described(journal)
    journal.append({"kind": "end", "status": "KILLED", "time": now_ms()})
    journal.mark_sent((journal.folder / "events.jsonl").stat().st_size)
    return journal


def a_damaged_snapshot(place: Place) -> str:
    spoil(newest := snapshot_in(interrupted(place).folder / "state", 1))
    return f"{newest}: is damaged"


def half_a_file(place: Place) -> str:
    path = place.cache / "scans" / ".memory.json.abcd.partial"
    path.parent.mkdir(parents=True)
    path.write_text("half")
    os.utime(path, (LONG_AGO, LONG_AGO))
    return f"{path}: was left half written"


def half_a_file_of_a_dead_run(place: Place) -> str:
    path = interrupted(place).stage("checkpoints/.best.safetensors.abcd.partial")
    path.write_text("half")
    return f"{path}: was left half written"


def a_damaged_file_of_rows(place: Place) -> str:
    (path,) = (place.cache / "features").rglob("*.safetensors")
    spoil(path)
    return f"{path}: is damaged"


def half_a_file_of_rows(place: Place) -> str:
    (path,) = (place.cache / "features").rglob("*.safetensors")
    os.truncate(path, path.stat().st_size // 2)
    return f"{path}: is damaged"


def a_removal_that_was_killed(place: Place) -> str:
    (folder,) = [each for each in (place.cache / "features").iterdir() if each.is_dir()]
    spoil(next(folder.glob("*.safetensors")))
    folder.rename(folder.with_name(".removed-abcd"))
    return "was being removed"


def a_trial_without_a_worker(place: Place) -> str:
    pid, started = dead()
    study = optuna.create_study(
        study_name="some", storage=storage.connect(storage.default(place.root)), direction="maximize"
    )
    trial = study.ask()
    trial.suggest_float("lr", 0, 1)
    trial.set_user_attr("owner", [this_host(), pid, started])
    return "study some: trial 0 says RUNNING"


TROUBLES: tuple[Callable[[Place], str], ...] = (
    a_run_without_a_process,
    a_journal_without_an_end,
    records_that_wait,
    a_journal_of_a_finished_run,
    a_delivered_journal_without_a_state,
    a_damaged_snapshot,
    half_a_file,
    half_a_file_of_a_dead_run,
    a_damaged_file_of_rows,
    half_a_file_of_rows,
    a_removal_that_was_killed,
    a_trial_without_a_worker,
)
trouble = pytest.mark.parametrize("plant", TROUBLES, ids=lambda each: each.__name__)


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and output of a doctor, on one line."""
    capsys.readouterr()
    status = doctor.main(words)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return status, said.out.replace("\n", "")


def squeezed(text: str) -> str:
    """Without blanks: a terminal breaks lines where it likes."""
    return "".join(text.split())


# The independent look


def test_nothing_is_untrue_of_a_healthy_place(place: Place) -> None:
    assert place.lies() == []


@trouble
def test_the_independent_look_sees_a_lie(place: Place, plant: Callable[[Place], str]) -> None:
    plant(place)
    assert place.lies(), "what the doctor's tests rely on can fail"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("UPDATE runs SET end_time = start_time - 1", "and ended at"),
        ("UPDATE runs SET end_time = NULL", "and ended at None"),
        ("UPDATE runs SET status = 'RUNNING'", "is RUNNING"),
        (
            "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan)"
            " SELECT key, value, timestamp + 1, run_uuid, step, is_nan FROM metrics WHERE step = 2",
            "2 points of val/loss at step 2",
        ),
        (
            "INSERT INTO logged_models (model_id, experiment_id, name, artifact_location, creation_timestamp_ms,"
            " last_updated_timestamp_ms, status, lifecycle_stage, model_type, source_run_id) VALUES"
            " ('m', (SELECT MIN(experiment_id) FROM experiments), 'n', 'a', 0, 0, 1, 'active', 'c', 'r')",
            "logged model m is not ready",
        ),
    ],
)
def test_the_independent_look_sees_a_lie_of_the_database(place: Place, change: str, said: str) -> None:
    with closing(sqlite3.connect(place.root / "mlflow.db")) as connection:
        connection.execute(change)
        connection.commit()
    (lie,) = place.lies()
    assert said in lie


def test_the_independent_look_sees_two_versions_of_a_run(place: Place) -> None:
    place.client.create_registered_model("small")
    for _ in range(2):
        place.client.create_model_version("small", str(place.root), place.run_id)
    (lie,) = place.lies()
    assert "has 2 model versions" in lie


def test_a_models_scores_are_not_a_second_point_of_the_runs_curve(place: Place) -> None:
    folder = place.root.parent / "model"
    with tracked(place.server, place.client, "small", "with a model", QUIET) as tracker:
        tracker.metrics({"val/top1": 0.5}, 1)
        shutil.copytree(_packed(folder), tracker.room("model"))
        time.sleep(0.01)
        tracker.model(tracker.room("model"), {
            "name": "small", "metrics": {"val/top1": 0.5}, "score": "val/top1", "value": 0.5,
            "manifest": "m", "step": 1,
        })  # fmt: skip
    (point,) = place.client.get_metric_history(tracker.run_id, "val/top1")
    assert (point.step, point.value) == (1, 0.5)
    (model,) = place.client.search_logged_models([place.client.get_run(tracker.run_id).info.experiment_id])
    assert [(each.key, each.value) for each in model.metrics] == [("val/top1", 0.5)]
    assert place.lies() == []


def _packed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "MLmodel").write_text("flavors: {}\n")
    return folder


# The doctor


def test_a_healthy_place_is_well(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    before = place.files()
    assert told(place.words, capsys) == (0, "All is well.")
    assert place.files() == before


def test_a_place_without_records_is_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--tracking.root", str(tmp_path / "nowhere"), "--cache", str(tmp_path / "neither")]
    status, said = told(words, capsys)
    assert status == 0
    assert "There are no records" in said
    assert said.endswith("All is well.")
    assert list(tmp_path.iterdir()) == [], "looking makes nothing"


@trouble
def test_trouble_is_found_and_mended(
    place: Place, plant: Callable[[Place], str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = plant(place)
    status, said = told(place.words, capsys)
    assert squeezed(expected) in squeezed(said)
    assert "mended." in said
    assert status == 0, said
    assert place.lies() == []
    assert told(place.words, capsys) == (0, "All is well."), "a second doctor finds nothing"


@trouble
def test_check_changes_nothing(
    place: Place, plant: Callable[[Place], str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = plant(place)
    before, untrue = place.files(), place.lies()
    status, said = told([*place.words, "--check"], capsys)
    assert squeezed(expected) in squeezed(said)
    assert status == 1
    assert "left to do." in said
    assert "mended" not in said
    assert (place.files(), place.lies()) == (before, untrue)


def test_all_troubles_at_once(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    skipped = (a_delivered_journal_without_a_state, a_removal_that_was_killed, half_a_file_of_rows)
    expected = [plant(place) for plant in TROUBLES if plant not in skipped]
    capsys.readouterr()
    assert doctor.main([*place.words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["left"] == 0
    found = squeezed(" ".join(f"{each['where']}: {each['what']}" for each in report["findings"]))
    for each in expected:
        assert squeezed(each) in found
    assert all(each["done"] for each in report["findings"])
    assert place.lies() == []
    assert told(place.words, capsys) == (0, "All is well.")


def test_json_is_one_object_and_nothing_else(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([*place.words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"findings": [], "left": 0}
    a_run_without_a_process(place)
    assert doctor.main([*place.words, "--json", "--check"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["left"] == 1
    (finding,) = report["findings"]
    assert set(finding) == {"where", "what", "done"}
    assert finding["done"] == ""


def test_a_run_that_it_closes_says_why(place: Place) -> None:
    run = a_run_without_a_process(place).split()[1].rstrip(":")
    doctor.main(place.words)
    (closed,) = [
        each
        for each in place.client.search_runs(["1"], "attributes.status = 'KILLED'")
        if each.info.run_id.startswith(run)
    ]
    assert closed.data.tags["runner.reason"] == "its process died without a word"


def test_an_abandoned_trial_is_tried_again(place: Place) -> None:
    a_trial_without_a_worker(place)
    doctor.main(place.words)
    study = optuna.load_study(study_name="some", storage=storage.connect(storage.default(place.root)))
    lost, again = study.trials
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert again.system_attrs["fixed_params"] == lost.params


def test_what_is_at_work_is_left_alone(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """A living run, a trial of a living worker, a file that is just being written."""
    study = optuna.create_study(study_name="some", storage=storage.connect(storage.default(place.root)))
    mine = me("", "")
    study.ask().set_user_attr("owner", [mine.host, mine.pid, mine.started])
    (place.cache / ".fresh.abcd.partial").write_text("half")
    with tracked(place.server, place.client, "small", "at work", QUIET) as tracker:
        tracker.metrics({"val/loss": 1.0}, 1)
        tracker.stage("checkpoints/.best.safetensors.abcd.partial").write_text("half")
        assert told(place.words, capsys) == (0, "All is well.")
    assert place.client.get_run(tracker.run_id).info.status == "FINISHED"
    assert study.trials[0].state == TrialState.RUNNING


def test_records_of_another_store_are_named_not_mended(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = place.journal("0" * 32, uri="http://somebody:secret@elsewhere.example:5000")
    journal.append(metric("val/loss", 0.5, 1))
    status, said = told(place.words, capsys)
    assert status == 1
    assert "elsewhere.example" in said
    assert "secret" not in said
    assert "sync" in said
    assert journal.folder.exists()


@pytest.mark.parametrize("how", ["header", "pages", "truncated", "text", "empty table"])
def test_a_damaged_database_is_a_finding(
    place: Place, how: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = place.root / "mlflow.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    if how == "header":
        content[:100] = bytes(100)
    elif how == "pages":
        content[4096 * 3 : -4096] = os.urandom(len(content) - 4096 * 4)
    elif how == "truncated":
        del content[len(content) // 2 :]
    elif how == "text":
        content = bytearray(b"this was a database\n" * 400)
    other = server(str(tmp_path / "other"))
    other.root.mkdir()
    (other.root / "mlflow.db").write_bytes(bytes(content))
    if how == "empty table":
        with closing(sqlite3.connect(other.root / "mlflow.db")) as connection:
            connection.execute("DROP TABLE runs")
            connection.commit()
    status, said = told(["--tracking.root", str(other.root), "--cache", str(place.cache)], capsys)
    assert status == 1, said
    assert "mlflow.db" in said
    assert "Traceback" not in said


# Sync


@pytest.fixture
def away(place: Place) -> Iterator[str]:
    """The address of a server that is not there."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{free.getsockname()[1]}"


def synced(place: Place, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    capsys.readouterr()
    status = guarded(lambda: sync.main(["--tracking.root", str(place.root)]))
    said = capsys.readouterr()
    return status, " ".join(said.out.split()), " ".join(said.err.split())


def test_nothing_waits(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert synced(place, capsys) == (0, "Nothing waits.", "")


def test_what_waits_is_delivered(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    records_that_wait(place)
    a_journal_without_an_end(place)
    status, said, errors = synced(place, capsys)
    assert (status, errors) == (0, "")
    assert said.endswith("Delivered the records of 2 of 2 runs.")
    assert place.lies() == []
    assert synced(place, capsys)[1] == "Nothing waits."


def test_a_server_that_is_away_is_one_sentence(
    place: Place, away: str, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = place.journal("0" * 32, uri=away)
    journal.append(metric("val/loss", 0.5, 1))
    before = place.files()
    status, _, errors = synced(place, capsys)
    assert status == 2
    assert errors.count("runner: ") == 1
    assert "Traceback" not in errors
    assert "does not answer" in errors
    assert "00000000" in errors
    assert place.files() == before


def test_each_store_gets_its_own(
    place: Place, away: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """One journal of the embedded store, one of another database, one of a server that is away."""
    records_that_wait(place)
    other = server(str(tmp_path / "other"))
    other.root.mkdir()
    shutil.copy(place.root / "mlflow.db", other.root / "mlflow.db")
    client = other.connect()
    run_id = client.create_run(other.experiment_id(client, "small")).info.run_id
    theirs = place.journal(run_id, uri=other.uri)
    theirs.append(metric("val/loss", 0.25, 1))
    theirs.append({"kind": "end", "status": "FINISHED", "time": now_ms()})
    lost = place.journal("0" * 32, uri=away)
    lost.append(metric("val/loss", 0.5, 1))
    status, said, errors = synced(place, capsys)
    assert status == 2
    assert "Delivered the records of 2 of 3 runs." in said
    assert "The records of run 00000000 still wait" in errors
    assert client.get_run(run_id).info.status == "FINISHED"
    assert client.get_run(run_id).data.metrics == {"val/loss": 0.25}
    assert [path.name for path in (place.root / "journals").iterdir() if path.is_dir()] == ["0" * 32]
    lost.remove()
    assert place.lies() == []
