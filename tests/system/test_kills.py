"""Runs that are killed at any moment and resumed: the same records as if nothing had happened, once each."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands import runs_of
from killed_runs import EVERY_STEP, Kill, WholeRun, Workspace, assert_same_run, points, timestamps

from runner import train
from runner.tracking.journal import Journal
from runner.utils.exit_status import run_main

pytestmark = pytest.mark.usefixtures("plain_environment")
NewWorkspace = Callable[[Path], Workspace]
END_DELIVERED = Kill(r"set_terminated", 1, after=True)
KILLS = {
    "before the journal is flushed": Kill(r"fsync .*events\.jsonl", 9),
    "when its end was delivered": END_DELIVERED,
    "when a snapshot was renamed": Kill(r"replace .*/state/0", 5, after=True),
    "when the store has committed": Kill(r"do_commit", 12, after=True),
    "before the best checkpoint is renamed": Kill(r"replace .*best\.safetensors", 1),
    "before the scan is saved": Kill(r"replace .*cache/scans", 1),
    "while features are written": Kill(r"replace .*cache/features", 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("moment", KILLS)
def test_a_killed_run_is_resumed(workspace: Workspace, whole_run: WholeRun, moment: str) -> None:
    assert workspace.train(*EVERY_STEP, kill=KILLS[moment]) == -signal.SIGKILL, workspace.output
    run_id = workspace.interrupted
    workspace.finish()
    assert_same_run(workspace, whole_run, run_id)


@pytest.mark.slow
def test_a_finished_run_is_not_resumed_while_its_records_wait(
    workspace: Workspace, whole_run: WholeRun
) -> None:
    assert workspace.train(*EVERY_STEP, kill=END_DELIVERED) == -signal.SIGKILL
    first = workspace.interrupted
    assert workspace.train(*EVERY_STEP, "--resume", "auto") == 0, workspace.output
    assert "starting a new one" in workspace.output
    runs = runs_of(workspace.client)
    assert [run.info.status for run in runs] == ["FINISHED"] * 2
    assert all(points(workspace.client, run.info.run_id) == whole_run.points for run in runs)
    assert first in [run.info.run_id for run in runs]


@pytest.mark.slow
def test_a_journal_is_removed_at_once(workspace: Workspace, whole_run: WholeRun) -> None:
    """A process that dies while it removes the journal of its finished run leaves nothing to resume."""
    workspace.train(*EVERY_STEP, kill=END_DELIVERED)
    (journal,) = Journal.find_all(workspace.journals)

    def interrupted(path: Path, **_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.remove()
    assert Journal.find_all(workspace.journals) == [], "whatever is left of it"
    words = (*EVERY_STEP, "--train.epochs", "1", "--resume", "auto")
    assert workspace.train(*words) == 0, workspace.output
    assert list(workspace.journals.iterdir()) == []
    first, _ = runs_of(workspace.client)
    assert first.info.status == "FINISHED"
    assert points(workspace.client, first.info.run_id) == whole_run.points


@pytest.mark.slow
def test_a_run_that_was_closed_is_resumed(workspace: Workspace, whole_run: WholeRun) -> None:
    """Another command has closed the run of the dead process as KILLED."""
    assert workspace.train(*EVERY_STEP, kill=Kill(r"replace .*/state/0", 5)) == -signal.SIGKILL
    run_id = workspace.interrupted
    workspace.recover()
    run = workspace.client.get_run(run_id)
    assert run.info.status == "KILLED"
    assert run.data.tags["runner.reason"] == "the process exited unexpectedly"
    assert workspace.train(*EVERY_STEP, "--resume", "auto") == 0, workspace.output
    assert_same_run(workspace, whole_run, run_id)


@pytest.mark.slow
def test_times_do_not_decrease_with_the_clock(
    workspace: Workspace, whole_run: WholeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, looks = time.time, iter(range(10**9))
    monkeypatch.setattr("runner.tracking.journal.time.time", lambda: now() - 60 * next(looks))
    assert run_main(lambda: train.main([*workspace.words, *EVERY_STEP])) == 0
    monkeypatch.undo()
    client = workspace.client
    (run,) = runs_of(client)
    assert points(client, run.info.run_id) == whole_run.points
    for name in ("train/loss", "val/top1"):
        logged = timestamps(client, run.info.run_id, name)
        assert logged == sorted(logged)
    assert run.info.end_time >= max(timestamps(client, run.info.run_id, "train/loss"))


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", range(6))
def test_a_run_that_is_killed_anywhere_is_resumed(
    new_workspace: NewWorkspace, tmp_path: Path, whole_run: WholeRun, part: int
) -> None:
    """Six times six operations of the uninterrupted run, spread evenly, before or after each."""
    count = len(whole_run.operations)
    for number in range(part, 36, 6):
        workspace = new_workspace(tmp_path / str(number))
        nth = 1 + (number * 2 + 1) * count // 72
        status = workspace.train(*EVERY_STEP, kill=Kill(".", nth, after=number % 2 == 1))
        run_id = workspace.interrupted if status else ""
        if status:
            workspace.finish()
        assert_same_run(workspace, whole_run, run_id)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_is_killed_again_and_again_is_resumed(
    workspace: Workspace, whole_run: WholeRun, seed: int
) -> None:
    chance, run_id = random.Random(seed), ""
    for _ in range(6):
        if workspace.has_finished_run:
            break
        kill = Kill(seconds=chance.uniform(0.3, 4))
        if workspace.train(*EVERY_STEP, "--resume", "auto", kill=kill) == 0:
            break
        assert run_id in ("", workspace.interrupted), "the run that was started is resumed"
        run_id = workspace.interrupted
    workspace.finish()
    assert_same_run(workspace, whole_run, run_id)
