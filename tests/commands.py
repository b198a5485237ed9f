"""Running the program's commands as a user does, and reading back what they left in MLflow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from benchmarks.support.processes import user_environment as user_environment

ROOT = Path(__file__).resolve().parent.parent
RUNNER = ROOT / "runner"
SLOW_START = 120
"""Seconds that a process has to reach its first epochs on a busy machine."""
COMMAND_TIMEOUT = 280
"""Seconds that a command has to end on a busy machine."""


def environment() -> dict[str, str]:
    """This process's environment without an MLflow server; computes on the CPU."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")}
    return {**inherited, "ACCELERATE_USE_CPU": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}


def runner(*words: str) -> list[str]:
    """The command line of `runner WORDS`."""
    return [sys.executable, "-m", "runner.cli.main", *words]


def accelerate(words: list[str]) -> list[str]:
    """The command line of `accelerate launch runner/train.py` on one process, with every choice spelled out."""
    return [
        *(sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"),
        *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
        *(str(RUNNER / "train.py"), *words),
    ]


def command(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        words,
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=COMMAND_TIMEOUT,
    )


def in_process(*words: str) -> subprocess.CompletedProcess[str]:
    """`runner WORDS` to its end in this process, with what it would launch: to start processes takes seconds."""
    from runner import train
    from runner.cli import evaluate, main
    from runner.utils.exit_status import run_main

    programs = {"train.py": train.main, "cli/evaluate.py": evaluate.main}

    def launch(script: str, arguments: Sequence[str], _processes: int | None) -> int:
        return run_main(lambda: programs[script](arguments))

    output, errors = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(output), redirect_stderr(errors):
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("MLFLOW_TRACKING_URI", "")  # MLflow itself sets it; it is as before afterwards
        patch.delenv("MLFLOW_TRACKING_URI")
        for module in ("launcher", "train", "reproduce"):
            patch.setattr(f"runner.cli.{module}.launch", launch)
        status = main.main(list(words))
    return subprocess.CompletedProcess(list(words), status, output.getvalue(), errors.getvalue())


def started(words: list[str], until: str, folder: Path) -> subprocess.Popen[bytes]:
    """Start a command and wait until its output, which goes to a file in `folder`, holds `until`."""
    output, errors = folder / "output.txt", folder / "errors.txt"
    with output.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(words, env=environment(), stdout=out, stderr=err, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + SLOW_START
    while until not in output.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"no {until!r}: {output.read_text()} {errors.read_text()}")
        time.sleep(0.05)
    return process


def client_of(folder: Path) -> Any:
    """A client of the MLflow database in `folder`/mlruns."""
    import mlflow

    return mlflow.MlflowClient(f"sqlite:///{folder / 'mlruns' / 'mlflow.db'}")


def runs_of(client: Any, experiment: str = "small") -> list[Any]:
    """The runs of an experiment, the oldest first."""
    experiments = client.search_experiments(filter_string=f"name = '{experiment}'")
    ids = [each.experiment_id for each in experiments]
    return list(client.search_runs(ids, order_by=["attributes.start_time ASC"])) if ids else []


def one_sentence(errors: str) -> str:
    """The one line of standard error that says what is wrong. Fails where there is none, more, or a traceback."""
    lines = [line for line in errors.splitlines() if line.startswith("runner: ")]
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0].removeprefix("runner: ")
