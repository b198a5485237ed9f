"""Techniques of fine-tuning in runs that are killed at any moment and resumed: the same records to the last bit."""

from __future__ import annotations

import random
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from killed_runs import EVERY_STEP, Kill, Workspace, assert_same_run, train_whole
from techniques import BASE, TECHNIQUES

pytestmark = pytest.mark.usefixtures("plain_environment")
NewWorkspace = Callable[[Path], Workspace]
MOMENTS = 5
"""At random, beside those where a stage of training begins."""


def with_technique(workspace: Workspace, name: str) -> Workspace:
    return replace(workspace, words=[*workspace.words, *BASE, *TECHNIQUES[name]])


def first_stage(name: str) -> int:
    """Its epochs; 0 if there are no stages."""
    found = re.search(r"stages.*?epochs: (\d)", " ".join(TECHNIQUES[name]))
    return int(found[1]) if found else 0


def moments(name: str, operations: int) -> list[Kill]:
    chance = random.Random(name)
    kills = [Kill(".", chance.randrange(1, operations), after=chance.random() < 0.5) for _ in range(MOMENTS)]
    if epochs := first_stage(name):
        snapshot = rf"replace .*/state/{epochs:06}-0000000"
        kills += [Kill(f"{snapshot}0", after=after) for after in (False, True)] + [
            Kill(f"{snapshot}1", after=True)
        ]
    return kills


def check(name: str, kills: list[Kill] | None, new_workspace: NewWorkspace, folder: Path) -> None:
    """Kill runs at some moments, or at random ones, resume each, and compare it with a whole run."""
    whole = train_whole(with_technique(new_workspace(folder / "whole"), name))
    for number, kill in enumerate(kills or moments(name, len(whole.operations))):
        workspace = with_technique(new_workspace(folder / str(number)), name)
        status = workspace.train(*EVERY_STEP, kill=kill)
        assert status in (0, -signal.SIGKILL), workspace.output
        assert status or kill.pattern == ".", "there is such a moment"
        run_id = workspace.interrupted if status else ""
        if status:
            workspace.finish()
        assert_same_run(workspace, whole, run_id)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", TECHNIQUES)
def test_a_run_that_is_killed_is_resumed(name: str, new_workspace: NewWorkspace, tmp_path: Path) -> None:
    check(name, None, new_workspace, tmp_path)


@pytest.mark.slow
def test_a_run_that_is_killed_where_a_stage_begins_is_resumed(
    new_workspace: NewWorkspace, tmp_path: Path
) -> None:
    check(
        "stages, averaged", [Kill(r"replace .*/state/000002-00000000", after=True)], new_workspace, tmp_path
    )
