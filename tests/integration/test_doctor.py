"""`runner doctor`: what it finds and repairs. An independent check says what is left afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import problems
import pytest
from helpers import QUIET
from optuna.trial import TrialState
from problems import NAME, PROBLEMS, Problem, Records, healthy_records, mark_delivered
from stores import Store, dead_owner, end, metric, resumable

from runner.cli.doctor import command as doctor
from runner.study import storage
from runner.tracking.journal import REMOVED_SUFFIX, Journal
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.process_identity import ProcessIdentity
from runner.tracking.run_lifecycle import RunRequest, track_run

each_problem = pytest.mark.parametrize("cause", PROBLEMS, ids=lambda cause: cause.__name__)
HEALTHY = (0, "No problems found.")


@pytest.fixture
def records(mlflow_store: Store, tmp_path: Path) -> Records:
    return healthy_records(mlflow_store, tmp_path / "cache")


Examine = Callable[..., tuple[int, str]]


@pytest.fixture
def examine(records: Records, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run doctor on the records: its status and output, on one line."""

    def run(*options: str) -> tuple[int, str]:
        capsys.readouterr()
        status = doctor.main([*records.options, *options])
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out.replace("\n", "")

    return run


def report_of(examine: Examine, *options: str) -> tuple[int, dict[str, Any]]:
    """Status and JSON report."""
    status, output = examine("--json", *options)
    return status, json.loads(output)


def without_blanks(text: str) -> str:
    """A terminal may break a line anywhere."""
    return "".join(text.split())


# What it finds


def test_runs_of_other_hosts_are_mentioned_when_they_are_silent_and_closed_when_their_host_is_lost(
    records: Records, examine: Examine
) -> None:
    server = tracking_server(str(records.root))
    client = server.connect()
    experiment = server.get_or_create_experiment(client, "elsewhere")
    long_ago = int((time.time() - 10 * 3600) * 1000)
    hosts = ["node7/1234/5678/9abc", "node7/1234/5678/9abc", "node7/4321/5678/9def"]
    silent, heard, twin = (
        client.create_run(experiment, long_ago, ProcessIdentity(host, 1, 1.0).tags()).info.run_id
        for host in hosts
    )
    client.log_metric(heard, "loss", 0.5)

    def statuses() -> list[str]:
        return [client.get_run(each).info.status for each in (silent, heard, twin)]

    status, output = examine()
    assert status == 1
    assert f"run {silent[:8]}: is RUNNING on {hosts[0]}, which has logged nothing for 10:00:0" in output
    assert heard[:8] not in output
    for name, reason in (
        ("node7", f"fits several hosts: {hosts[0]}, {hosts[2]}"),
        ("node", f"has no RUNNING runs; those have: {', '.join(sorted({hosts[0], hosts[2]}))}"),
    ):
        status, output = examine("--lost-host", name)
        assert status == 1
        assert f"{name}: {reason}; nothing was closed" in output
        assert statuses() == ["RUNNING"] * 3
    status, output = examine("--lost-host", "node7/1234")
    assert output.count("closed as KILLED") == 1
    assert f"run {heard[:8]}: has logged " in output
    assert statuses() == ["KILLED", "RUNNING", "RUNNING"]
    assert client.get_run(silent).data.tags["runner.reason"] == f"its host {hosts[0]} is gone"


def test_healthy_records_are_left_alone(records: Records, examine: Examine) -> None:
    before = records.files()
    assert examine() == HEALTHY
    assert records.files() == before


def test_a_folder_without_records_is_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--tracking.root", str(tmp_path / "nowhere"), "--cache", str(tmp_path / "neither")]
    assert doctor.main(options) == 0
    output = capsys.readouterr().out
    assert "There are no records" in output
    assert output.endswith("No problems found.\n")
    assert list(tmp_path.iterdir()) == [], "examining creates nothing"


@each_problem
def test_problems_are_found_and_repaired(records: Records, examine: Examine, cause: Problem) -> None:
    expected = cause(records)
    status, output = examine()
    assert without_blanks(expected) in without_blanks(output)
    assert "repaired." in output
    assert status == 0, output
    assert records.inconsistencies() == []
    assert examine() == HEALTHY, "nothing is left to find"


@each_problem
def test_check_changes_nothing(records: Records, examine: Examine, cause: Problem) -> None:
    expected = cause(records)
    before = records.files(), records.inconsistencies()
    status, output = examine("--check")
    assert without_blanks(expected) in without_blanks(output)
    assert status == 1
    assert "left to fix." in output
    assert "repaired" not in output
    assert (records.files(), records.inconsistencies()) == before


def test_all_problems_at_once(records: Records, examine: Examine) -> None:
    alternatives = (problems.delivered_journal, problems.interrupted_removal, problems.truncated_features)
    expected = [cause(records) for cause in PROBLEMS if cause not in alternatives]
    status, report = report_of(examine)
    assert (status, report["left"]) == (0, 0)
    findings = report["findings"]
    found = without_blanks(" ".join(f"{finding['where']}: {finding['what']}" for finding in findings))
    for each in expected:
        assert without_blanks(each) in found
    assert all(finding["done"] for finding in findings)
    assert records.inconsistencies() == []
    assert examine() == HEALTHY


def test_json_is_one_object_and_nothing_else(records: Records, examine: Examine) -> None:
    assert report_of(examine) == (0, {"findings": [], "left": 0})
    problems.run_without_process(records)
    status, report = report_of(examine, "--check")
    assert (status, report["left"]) == (1, 1)
    (finding,) = report["findings"]
    assert set(finding) == {"where", "what", "done"}
    assert finding["done"] == ""


def test_a_failed_repair_is_reported(
    records: Records, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    problems.incomplete_file(records)

    def refuse(*_: object) -> None:
        raise PermissionError("not yours")

    monkeypatch.setattr(Path, "unlink", refuse)
    status, report = report_of(examine)
    assert status == 1
    (finding,) = report["findings"]
    assert "the repair failed: not yours" in finding["what"]
    assert finding["done"] == ""


# What it does


def test_a_closed_run_has_the_reason(records: Records, examine: Examine) -> None:
    problems.run_without_process(records)
    examine()
    (experiment,) = (each.experiment_id for each in records.client.search_experiments() if each.name == NAME)
    (closed,) = records.client.search_runs([experiment], "attributes.status = 'KILLED'")
    assert closed.data.tags["runner.reason"] == "the process exited unexpectedly"


def test_a_stale_trial_is_tried_again(records: Records, examine: Examine) -> None:
    problems.trial_without_worker(records)
    examine()
    address = storage.default_storage(records.root)
    lost, again = optuna.load_study(study_name="some", storage=storage.connect(address)).trials
    assert (lost.state, again.state) == (TrialState.FAIL, TrialState.WAITING)
    assert again.system_attrs["fixed_params"] == lost.params


def test_work_in_progress_is_left_alone(records: Records, examine: Examine) -> None:
    """A run and a trial of living processes, and a file that is just being written."""
    study = optuna.create_study(
        study_name="some", storage=storage.connect(storage.default_storage(records.root))
    )
    process = ProcessIdentity.current()
    study.ask().set_user_attr("owner", [process.host, process.pid, process.started])
    (records.cache / ".fresh.abcd.partial").write_text("half")
    with track_run(records.server, records.client, RunRequest(NAME, "in progress"), QUIET) as tracker:
        tracker.log_metrics({"val/loss": 1.0}, 1)
        tracker.artifact_path("checkpoints/.best.safetensors.abcd.partial").write_text("half")
        assert examine() == HEALTHY
    assert records.client.get_run(tracker.run_id).info.status == "FINISHED"
    assert study.trials[0].state == TrialState.RUNNING


# What it cannot repair


def test_records_of_another_store_are_reported_only(records: Records, examine: Examine) -> None:
    journal = records.journal("0" * 32, uri="http://somebody:secret@elsewhere.example:5000")
    journal.append(metric("val/loss", 0.5, 1))
    status, output = examine()
    assert status == 1
    assert "elsewhere.example" in output
    assert "secret" not in output
    assert "sync" in output
    assert journal.folder.exists()


def test_a_resumable_run_whose_database_was_moved_is_reported(
    records: Records, examine: Examine, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path / 'gone' / 'mlflow.db'}"
    journal = resumable(Journal.create(records.server.journals, dead_owner(uri, "e" * 32)))
    journal.append(end("KILLED"))
    mark_delivered(journal)
    _, report = report_of(examine, "--check")
    (what,) = (finding["what"] for finding in report["findings"] if finding["where"] == str(journal.folder))
    assert str(tmp_path / "gone") in what


def test_a_damaged_record_is_reported(records: Records, examine: Examine) -> None:
    journal = problems.interrupted_run(records)
    (journal.folder / "state" / "run.json").write_text("{")
    status, output = examine()
    assert status == 1
    assert "its run cannot be resumed" in output


@pytest.mark.parametrize("content", ["", "{", '{"pid": "x"}', "[]"])
def test_records_without_an_owner_are_not_removed(records: Records, examine: Examine, content: str) -> None:
    journal = records.journal(records.new_run("FINISHED"))
    journal.append(metric("loss", 0.5, 1))
    (journal.folder / "owner.json").write_text(content)
    leftovers = [records.server.journals / name for name in ("empty", f"some{REMOVED_SUFFIX}")]
    for folder in leftovers:
        folder.mkdir()
    (leftovers[1] / "events.jsonl").write_text("")
    for folder in (*leftovers, journal.folder):
        for path in (*folder.rglob("*"), folder):
            os.utime(path, (1, 1))
    status, report = report_of(examine)
    assert status == 1
    (left,) = (finding for finding in report["findings"] if not finding["done"])
    assert left["where"] == str(journal.folder)
    assert "owner.json" in left["what"]
    assert len((journal.folder / "events.jsonl").read_text().splitlines()) == 1
    assert [folder.exists() for folder in leftovers] == [False, False]


@pytest.mark.parametrize("how", ["header", "pages", "truncated", "text", "missing table"])
def test_a_damaged_database_is_reported(
    records: Records, how: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = records.root / "mlflow.db"
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
    other = tracking_server(str(tmp_path / "other"))
    other.root.mkdir()
    (other.root / "mlflow.db").write_bytes(bytes(content))
    if how == "missing table":
        with closing(sqlite3.connect(other.root / "mlflow.db")) as connection:
            connection.execute("DROP TABLE runs")
            connection.commit()
    status = doctor.main(["--tracking.root", str(other.root), "--cache", str(records.cache)])
    printed = capsys.readouterr()
    assert status == 1, printed.out
    assert "mlflow.db" in printed.out
    assert "Traceback" not in printed.err


def test_records_that_were_set_aside_are_named(records: Records, examine: Examine) -> None:
    folder = records.server.root / "refused" / "some-run"
    folder.mkdir(parents=True)
    entry = {"kind": "artifact", "file": "figures/a.png", "folder": "figures", "reason": "name too long"}
    (folder / "events.jsonl").write_text(f"{json.dumps(entry)}\n")
    status, report = report_of(examine)
    assert status == 1
    (finding,) = report["findings"]
    assert finding["where"] == str(folder)
    assert "figures/a.png (name too long)" in finding["what"]
