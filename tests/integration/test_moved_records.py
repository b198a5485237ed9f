"""Folders of run records that were moved or copied: all verbs work there, and a copy leaves the original alone."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from consistency import inconsistencies
from killed_runs import EVERY_STEP, WholeRun, Workspace, assert_same_run
from stores import Store, artifacts, copy_store, dead_owner, end, metric, new_run, open_store, points, status
from studies import make_plan, quickstart
from trained import TrainedRun

from runner.cli import main
from runner.study.session import close_study_run, open_study_run
from runner.study.study import Study
from runner.tracking.journal import Journal
from runner.tracking.run_lifecycle import RunRequest, track_run
from runner.tracking.sessions import TrackingSession
from runner.utils.console import Terminal

pytestmark = pytest.mark.usefixtures("plain_environment")
Command = Callable[..., str]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """`command(root, "runs", …)`: the standard output of a verb that succeeds."""

    def run(root: Path, *words: str) -> str:
        capfd.readouterr()
        code = main.main([*words, "--tracking.root", str(root)])
        captured = capfd.readouterr()
        assert code == 0, captured.err
        return captured.out

    return run


@pytest.fixture(params=["copied", "moved"])
def elsewhere(trained_run: TrainedRun, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The records of the trained run at another place; where they were moved, they were copied before."""
    root = Path(shutil.copytree(trained_run.tracking, tmp_path / "a copy"))
    if request.param == "moved":
        open_store(root)[0].check_exists()
        root = root.rename(tmp_path / "moved")
    return root


def database(root: Path) -> list[str]:
    """Everything that a database holds, as SQL."""
    with closing(sqlite3.connect(root / "mlflow.db")) as connection:
        return list(connection.iterdump())


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder of records, except SQLite's own files beside the database."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("mlflow.db"))
    return {str(path): path.read_bytes() for path in files}


def test_runs_models_and_files_are_found(elsewhere: Path, trained_run: TrainedRun, command: Command) -> None:
    before = database(Path(trained_run.tracking))
    (row,) = json.loads(command(elsewhere, "runs", "--json"))
    assert row["run"] == trained_run.run_id
    image = str(trained_run.pictures / "red" / "00.png")
    of_run = command(elsewhere, "predict", image, "--model", trained_run.run_id)
    assert (
        command(elsewhere, "predict", image, "--model", "small@champion").splitlines()[1:]
        == (of_run.splitlines()[1:])
    )
    assert "No problems found" in command(elsewhere, "doctor")
    assert "Nothing to deliver" in command(elsewhere, "sync")
    assert "manifest.csv" in artifacts(open_store(elsewhere)[1], trained_run.run_id)
    assert not [line for line in database(elsewhere) if f"{trained_run.tracking}/artifacts" in line]
    assert database(Path(trained_run.tracking)) == before


def test_new_runs_of_a_copy_leave_the_original_alone(
    elsewhere: Path, trained_run: TrainedRun, silent: Terminal, command: Command
) -> None:
    before, rows = content(Path(trained_run.tracking)), database(Path(trained_run.tracking))
    with track_run(*open_store(elsewhere), RunRequest("small", "later"), silent) as tracker:
        tracker.log_text("note.txt", "of the copy")
    assert list(elsewhere.glob("artifacts/small/*/artifacts/note.txt"))
    command(elsewhere, "runs", "delete", trained_run.run_id)
    assert (content(Path(trained_run.tracking)), database(Path(trained_run.tracking))) == (before, rows)


def test_pending_records_go_to_the_copy(mlflow_store: Store, tmp_path: Path, command: Command) -> None:
    server, client = mlflow_store
    run_id = new_run(mlflow_store)
    journal = Journal.create(server.journals, dead_owner(server.uri, run_id))
    journal.append(metric("val/loss", 0.25, 1))
    journal.append(end())
    copy = Path(shutil.copytree(server.root, tmp_path / "copy"))
    assert "Delivered the records of 1 of 1 run." in command(copy, "sync")
    assert points(open_store(copy)[1], run_id, "val/loss") == [(1, 0.25)]
    assert inconsistencies(copy) == []
    assert (points(client, run_id, "val/loss"), status(client, run_id)) == ([], "RUNNING")


def test_a_database_that_is_gone_is_not_created_by_sync(
    mlflow_store: Store, tmp_path: Path, refused: Callable[..., str]
) -> None:
    server, _ = mlflow_store
    gone = tmp_path / "gone" / "mlflow.db"
    Journal.create(server.journals, dead_owner(f"sqlite:///{gone}", "0123")).append(end())
    assert f"no database {gone} any more" in refused(["sync", "--tracking.root", str(server.root)])
    assert not gone.parent.exists()


@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
def test_a_study_goes_on_elsewhere(
    mlflow_template: Path, tmp_path: Path, silent: Terminal, moved: bool
) -> None:
    def open_run(root: Path) -> str:
        plan = make_plan(root / "studies.journal", baseline=quickstart("--tracking.root", str(root)))
        tracking = TrackingSession(plan.baseline, None, silent)
        study = Study(plan, root)
        run = open_study_run(study, tracking)
        close_study_run(study, tracking, run, "KILLED")
        return run.run_id

    root = copy_store(mlflow_template, tmp_path / "mlruns")
    run_id = open_run(root)
    before = content(root)
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    if moved:
        shutil.rmtree(root)
    assert [open_run(copy), open_run(copy)] == [run_id, run_id]
    assert moved or content(root) == before
    assert moved or open_run(root) == run_id


@pytest.mark.slow
@pytest.mark.parametrize("moved", [True, False], ids=["moved", "copied"])
def test_an_interrupted_run_goes_on_elsewhere(
    interrupted_copy: Workspace, tmp_path: Path, whole_run: WholeRun, moved: bool
) -> None:
    run_id, root = interrupted_copy.interrupted, interrupted_copy.folder / "mlruns"
    before = content(root)
    new = tmp_path / "new" / "mlruns"
    shutil.copytree(root, new)
    if moved:
        shutil.rmtree(root)
    words = [word.replace(str(root), str(new)) for word in interrupted_copy.words]
    workspace = Workspace(new.parent, words)
    assert workspace.train(*EVERY_STEP, "--resume", "auto") == 0, workspace.output
    assert_same_run(workspace, whole_run, run_id)
    assert content(root) == ({} if moved else before)
