"""What a resumed run needs to be as it was: images, weights, snapshots. Branches and repeated runs."""

from __future__ import annotations

import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from commands import runs_of
from killed_runs import EVERY_STEP, Kill, WholeRun, Workspace, assert_same_run, points

from runner.training import snapshot

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("plain_environment")]


def test_a_run_that_diverges_has_finite_snapshots_and_says_so(workspace: Workspace) -> None:
    assert workspace.train(*EVERY_STEP, "--optim.lr", "1e30", "--optim.name", "sgd") == 2
    assert "training diverged" in workspace.output
    (state,) = workspace.states
    assert json.loads((state / "run.json").read_text())["diverged"]
    found, _ = snapshot.load_newest(state)
    assert found is None or found.is_finite
    (run,) = runs_of(workspace.client)
    assert run.info.status == "FAILED"
    assert "at step" in run.data.tags["runner.reason"]


def test_changed_images_are_refused(interrupted_copy: Workspace, images: Path, tmp_path: Path) -> None:
    workspace, run_id, other = interrupted_copy, interrupted_copy.interrupted, tmp_path / "images"
    shutil.copytree(images, other)
    words = [*workspace.words, *EVERY_STEP, "--data.root", str(other), "--resume", run_id]
    shutil.copy(other / "red" / "00.png", other / "blue" / "00.png")
    before = workspace.client.get_run(run_id).data.tags
    assert Workspace(workspace.folder, words).train() == 2
    assert f"are not those of run {run_id[:8]}" in workspace.output
    assert "Traceback" not in workspace.output
    after = workspace.client.get_run(run_id).data.tags
    assert after["runner.manifest"] == before["runner.manifest"]
    assert "runner.resumed" not in after
    shutil.copy(images / "blue" / "00.png", other / "blue" / "00.png")
    assert Workspace(workspace.folder, words).train() == 0, "the same images in another folder will do"


def test_changed_frozen_weights_are_refused(workspace: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "vgg11.pth"

    def write(seed: int) -> None:
        torch.manual_seed(seed)
        layers = torchvision.models.vgg11(num_classes=2).features.state_dict()
        torch.save({f"features.{name}": value for name, value in layers.items()}, file)

    write(1)
    words = (*EVERY_STEP, "--model.weights", str(file), "--model.normalize", "statistics")
    kill = Kill(r"replace .*/state/000001", 1, after=True)
    assert workspace.train(*words, kill=kill) == -signal.SIGKILL, workspace.output
    write(2)
    assert workspace.train(*words, "--resume", "auto") == 2, workspace.output
    assert "The frozen weights are not those of run" in workspace.output
    assert workspace.train(*words, "--resume", workspace.interrupted, "--branch") == 2, workspace.output
    write(1)
    assert workspace.train(*words, "--resume", "auto") == 0, workspace.output


def test_a_damaged_snapshot_is_skipped(interrupted_copy: Workspace, whole_run: WholeRun) -> None:
    workspace, run_id = interrupted_copy, interrupted_copy.interrupted
    newest, *_ = snapshot.paths(workspace.states[0])
    newest.write_bytes(newest.read_bytes()[:-1])
    assert workspace.train(*EVERY_STEP, "--resume", "auto") == 0, workspace.output
    assert "using an earlier one" in workspace.output
    assert_same_run(workspace, whole_run, run_id)


def test_without_an_undamaged_snapshot_a_run_starts_again(
    interrupted_copy: Workspace, whole_run: WholeRun
) -> None:
    workspace, run_id = interrupted_copy, interrupted_copy.interrupted
    for path in snapshot.paths(workspace.states[0]):
        path.write_bytes(b"")
    assert workspace.train(*EVERY_STEP, "--resume", "auto") == 0, workspace.output
    assert "at the beginning" in workspace.output
    assert_same_run(workspace, whole_run, run_id)


def test_a_branch_is_a_run_of_its_own(interrupted_copy: Workspace, whole_run: WholeRun) -> None:
    workspace, run_id = interrupted_copy, interrupted_copy.interrupted
    state = {path: path.read_bytes() for path in workspace.states[0].iterdir()}
    branch = ("--optim.lr", "0.0001", "--resume", run_id, "--branch")
    assert workspace.train(*branch) == 0, workspace.output
    old, new = runs_of(workspace.client)
    assert (old.info.run_id, old.info.status, new.info.status) == (run_id, "KILLED", "FINISHED")
    assert re.match(rf"{run_id} at step \d+", new.data.tags["runner.branch_of"])
    assert all(path.read_bytes() == content for path, content in state.items()), "it stays resumable"
    branched = points(workspace.client, new.info.run_id)
    assert [step for step, _ in branched["train/loss"]] == [1, 2, 3]
    assert branched["train/loss"][0] == whole_run.points["train/loss"][0]
    assert branched["lr"][1][1] == pytest.approx(0.0001)
    assert workspace.train(*EVERY_STEP, "--resume", run_id) == 0, workspace.output
    assert points(workspace.client, run_id) == whole_run.points


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed.split", "7"], "or their split, are not those of run"),
        (["--train.epochs", "1"], "raise --train.epochs"),
    ],
)
def test_a_branch_with_a_wrong_result_is_refused(
    interrupted_copy: Workspace, words: list[str], message: str
) -> None:
    """With another split it would be evaluated on images that it was trained on."""
    workspace, run_id = interrupted_copy, interrupted_copy.interrupted
    assert workspace.train(*words, "--resume", run_id, "--branch") == 2
    assert message in workspace.output
    assert "Traceback" not in workspace.output
    _, branch = runs_of(workspace.client)
    assert branch.info.status == "FAILED"
    assert not [name for name in branch.data.metrics if name.startswith("test/")]


def test_a_repeated_run_is_resumed_in_the_seed_that_was_interrupted(
    new_workspace: Callable[[Path], Workspace], tmp_path: Path
) -> None:
    whole, killed = (new_workspace(tmp_path / name) for name in ("whole", "killed"))
    repeat = (*EVERY_STEP, "--repeat", "3")
    assert whole.train(*repeat) == 0, whole.output
    assert killed.train(*repeat, kill=Kill(r"replace .*/state/000001", 5, after=True)) == -signal.SIGKILL
    before = {run.info.run_id: run.info.status for run in runs_of(killed.client)}
    assert sorted(before.values()) == ["FINISHED", "RUNNING", "RUNNING"]
    assert killed.train(*repeat, "--resume", "auto") == 0, killed.output
    assert "is finished: run" in killed.output
    assert all_points(whole) == all_points(killed)
    after = {run.info.run_id for run in runs_of(killed.client)}
    assert before.keys() <= after
    assert len(after) == 4


def all_points(workspace: Workspace) -> list[tuple[bool, str, object]]:
    """Of each run of a repeated training: whether it is a child, its seed, its points. All must be finished."""
    runs = runs_of(workspace.client)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert list(workspace.journals.iterdir()) == []
    found = [
        ("mlflow.parentRunId" in run.data.tags, run.data.params["seed.train"], run.info.run_id)
        for run in runs
    ]
    return [
        (is_child, seed, points(workspace.client, run_id))
        for is_child, seed, run_id in sorted(found, key=lambda each: each[:2])
    ]
