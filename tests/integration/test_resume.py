"""`--resume` and `--branch`: a killed run is resumed, and what cannot be resumed is refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import runs_of
from killed_runs import EVERY_STEP, WholeRun, Workspace, assert_same_run, points
from stores import set_owner

from runner.tracking.journal import Journal
from runner.tracking.process_identity import ProcessIdentity

pytestmark = pytest.mark.usefixtures("plain_environment")
Refused = Callable[..., str]


def test_a_killed_run_is_resumed(interrupted_copy: Workspace, whole_run: WholeRun) -> None:
    """The main road; tests/system kills runs at other moments."""
    workspace, run_id = interrupted_copy, interrupted_copy.interrupted
    assert workspace.train(*EVERY_STEP, "--resume", "auto") == 0, workspace.output
    assert_same_run(workspace, whole_run, run_id)


def test_another_experiment_is_refused(interrupted_run: Workspace, refused: Refused) -> None:
    resume = (*interrupted_run.words, "--resume", interrupted_run.interrupted[:8])
    message = refused(["train", *resume, "--optim.lr", "0.5", "--train.epochs", "9"])
    assert "and is 0.5 now" in message
    assert "train.epochs was 3 and is 9 now" in message
    assert "--branch" in message
    assert "--repeat 1" in refused(["train", *resume, "--repeat", "2"])


def test_an_unknown_run_is_refused(interrupted_run: Workspace, refused: Refused) -> None:
    message = refused(["train", *interrupted_run.words, "--resume", "nowhere"])
    assert "no interrupted run 'nowhere'" in message
    assert interrupted_run.interrupted[:8] in message, "it names those that exist"
    root = str(interrupted_run.folder / "mlruns")
    assert "no interrupted run 'nowhere'" in refused(
        ["train", "--tracking.root", root, "--resume", "nowhere"]
    )


def test_a_branch_needs_a_run(interrupted_run: Workspace, refused: Refused) -> None:
    words, run_id = interrupted_run.words, interrupted_run.interrupted
    assert "--resume RUN" in refused(["train", *words, "--resume", "auto", "--branch"])
    assert "--resume RUN" in refused(["train", *words, "--branch"])
    assert "--repeat" in refused(["train", *words, "--resume", run_id, "--branch", "--repeat", "2"])


def test_a_run_of_another_store_is_refused(
    interrupted_run: Workspace, refused: Refused, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    message = refused(["train", *interrupted_run.words, "--resume", interrupted_run.interrupted])
    assert "MLFLOW_TRACKING_URI" in message


def test_a_run_that_still_runs_is_refused(interrupted_copy: Workspace, refused: Refused) -> None:
    (journal,) = Journal.find_all(interrupted_copy.journals)
    me = ProcessIdentity.current()
    set_owner(journal, dataclasses.replace(journal.owner, **dataclasses.asdict(me)))
    message = refused(["train", *interrupted_copy.words, "--resume", journal.owner.run_id])
    assert f"still runs: process {me.pid} on" in message


def test_a_run_that_diverged_is_refused(interrupted_copy: Workspace, refused: Refused) -> None:
    interrupted_copy.change_record(diverged=True)
    message = refused(["train", *interrupted_copy.words, "--resume", interrupted_copy.interrupted])
    assert "diverged" in message
    assert "--branch" in message


@pytest.mark.slow
def test_auto_skips_a_run_that_diverged(interrupted_copy: Workspace) -> None:
    interrupted_copy.change_record(diverged=True)
    assert interrupted_copy.train(*EVERY_STEP, "--resume", "auto") == 0, interrupted_copy.output
    assert "starting a new one" in interrupted_copy.output


@pytest.mark.slow
def test_settings_that_change_no_result_may_differ(interrupted_copy: Workspace, whole_run: WholeRun) -> None:
    workspace, run_id = interrupted_copy, interrupted_copy.interrupted
    words = ("--data.workers", "1", "--checkpoints.keep", "1", "--features.memory", "0.5")
    assert workspace.train(*words, "--resume", run_id[:6]) == 0, workspace.output
    (run,) = runs_of(workspace.client)
    assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")
    assert points(workspace.client, run_id) == whole_run.points


@pytest.mark.slow
def test_a_run_that_is_named_brings_its_experiment(interrupted_copy: Workspace, whole_run: WholeRun) -> None:
    workspace, run_id = interrupted_copy, interrupted_copy.interrupted
    (name,) = [run.info.run_name for run in runs_of(workspace.client)]
    root = str(workspace.folder / "mlruns")
    requested = json.loads((workspace.states[0] / "run.json").read_text())["requested"]
    requested["tracking"]["root"] = root  # it names the folder that the workspace was copied from
    requested["cache"] = str(workspace.folder / "cache")
    workspace.change_record(requested=requested)
    words = ["--tracking.root", root, "--resume", name]
    assert Workspace(workspace.folder, words).train() == 0, workspace.output
    assert_same_run(workspace, whole_run, run_id)


@pytest.mark.slow
def test_a_resume_that_fails_changes_no_record(interrupted_copy: Workspace) -> None:
    record = interrupted_copy.states[0] / "run.json"
    before = record.read_bytes()
    elsewhere = str(interrupted_copy.folder / "nowhere")
    words = [*interrupted_copy.words, "--data.root", elsewhere, "--resume", "auto"]
    assert Workspace(interrupted_copy.folder, words).train() == 2, interrupted_copy.output
    assert record.read_bytes() == before
