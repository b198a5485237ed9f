"""What is shipped works as its documents say: the quickstart whole, the commands of the README, the headers."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from runner.cli import slurm
from runner.cli.launcher import take_processes
from runner.config.parser import parse
from runner.utils.paths import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    line.split("#")[0].strip()
    for page in (
        "README.md",
        *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")),
    )
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.startswith("./launch.sh slurm ")])
def test_the_slurm_commands_of_the_documents_are_understood(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert slurm.main([*shlex.split(command)[2:], "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("#!/bin/bash")


@pytest.mark.parametrize(
    "command", [each for each in COMMANDS if " train " in each and " slurm " not in each]
)
def test_the_training_commands_of_the_documents_are_understood(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command.removesuffix("…"))
    assert words[:2] == ["./launch.sh", "train"]
    _, rest = take_processes(words[2:])
    monkeypatch.chdir(tmp_path)
    for word in rest:  # the folders and archives that the documents name
        if not word.startswith(("-", "/")):
            (tmp_path / word).mkdir(parents=True, exist_ok=True)
    experiment, _ = parse(rest)
    assert experiment.train.epochs


def test_the_readme_begins_with_the_three_commands_of_a_new_machine() -> None:
    assert COMMANDS[:3] == ["./launch.sh", "./launch.sh ui", "./launch.sh test"]


def test_the_tests_that_the_documents_name_are_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reliability.md").read_text()))
    assert len(named) > 8
    present = {path.stem for path in (ROOT / "tests").rglob("test_*.py")}
    assert named - present == set()


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_opens_with_its_command_and_what_to_expect(path: Path) -> None:
    header = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    commands = {"quickstart": "./launch.sh", "folder": "./launch.sh train IMAGES"}
    command = commands.get(path.stem, f"./launch.sh train --config {path.stem}")
    assert f"#   {command}" in header
    assert "# Needs:" in header
    assert "# Expect:" in header


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param((), id="whole", marks=pytest.mark.long),
        pytest.param(
            ("--model.arch", "vgg11", "--augment.views", "none"), id="fewer features", marks=pytest.mark.slow
        ),
    ],
)
def test_the_quickstart_learns_the_digits(tmp_path: Path, changes: tuple[str, ...]) -> None:
    words = ["--cache", str(tmp_path / "cache"), "--tracking.root", str(tmp_path / "mlruns")]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}

    def run(*command: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "runner.cli.main", *command],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
            timeout=280,
        ).stdout

    output = run("train", *words, *changes)
    assert "RANDOM" in output
    assert "./launch.sh ui" in output
    report = json.loads(run("evaluate", "latest", "--json", "--no-report", *words[2:]))
    assert report["images"] == 454
    assert report["checkpoints"]["best"]["top1"] > 0.85
