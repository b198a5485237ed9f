"""A run and a study on a server or in PostgreSQL leave no password in their output or files."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from commands import ROOT, runner, user_environment
from helpers import listening
from http_servers import SECRET, assert_holds_no_secret
from postgres import PASSWORD, postgres_database

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("plain_environment")]
SPACE = "optim.lr: [1.0e-6, 0.01]\n"


@pytest.fixture
def mlflow_server(
    mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    """The address of an MLflow server, and its folder."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(mlflow_template, folder / "mlflow.db")
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}"),
        *("--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"),
    ]
    quiet = user_environment(MLFLOW_DISABLE_TELEMETRY="true", MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false")
    with listening(command, "/health", folder / "output.txt", quiet) as address:
        yield address, folder


def database_content(folder: Path) -> bytes:
    """Everything in an MLflow database, including what is still in its write-ahead log."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as connection:
        return "\n".join(connection.iterdump()).encode()


def run(words: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    process = subprocess.run(runner(*words), capture_output=True, text=True, cwd=ROOT, env=environment)
    assert process.returncode == 0, process.stderr
    return process


def test_a_run_and_a_study_on_a_server_leave_no_password(
    mlflow_server: tuple[str, Path], words: list[str], tmp_path: Path
) -> None:
    """Not in the output, not in MLflow, not in any file."""
    address, folder = mlflow_server
    environment = user_environment(MLFLOW_TRACKING_URI=address.replace("http://", f"http://user:{SECRET}@"))
    words = [*words, "--train.epochs", "1", "--tracking.model", "true"]
    (tmp_path / "space.yaml").write_text(SPACE)
    # A baseline that is beaten, so that runs confirm the best trial.
    slow = ["--train.epochs", "4", "--optim.lr", "1e-6", "--sampler", "grid"]
    study = [
        "search",
        *words,
        *slow,
        "--study",
        "s",
        "--space",
        str(tmp_path / "space.yaml"),
        "--confirm",
        "1",
    ]
    picture = next((tmp_path / "pictures").rglob("*.png"))
    for command in (
        ["train", *words],
        ["evaluate", "latest", "--json"],
        [*study, "--trials", "2"],
        [*study, "--trials", "3"],
        ["predict", str(picture), "--model", "small@champion", "--json"],
    ):
        process = run(command, environment)
        assert SECRET not in process.stdout + process.stderr, command
        if "--json" in command:
            json.loads(process.stdout)
    assert_holds_no_secret(tmp_path)
    assert_holds_no_secret(folder)
    assert SECRET.encode() not in database_content(folder)
    assert b"runner search" in b"".join(path.read_bytes() for path in folder.rglob("environment.json"))


def test_a_study_in_postgresql_leaves_no_password(words: list[str], tmp_path: Path) -> None:
    """The command, which runs record, holds it."""
    import optuna

    (tmp_path / "space.yaml").write_text(SPACE)
    study = ["--study", "s", "--space", str(tmp_path / "space.yaml"), "--trials", "3", "--confirm", "1"]
    with postgres_database() as address:
        slow = ["--train.epochs", "4", "--optim.lr", "1e-6", "--sampler", "grid"]  # it is beaten
        command = ["search", *words, *slow, *study, "--storage", address]
        process = run(command, user_environment())
        scheme, _, rest = address.partition("://")
        stored = optuna.load_study(study_name="s", storage=f"{scheme}+psycopg://{rest}")
        attributes = [stored.user_attrs, *(trial.user_attrs for trial in stored.trials)]
    assert PASSWORD not in process.stdout + process.stderr
    assert_holds_no_secret(tmp_path, PASSWORD)
    assert PASSWORD.encode() not in database_content(tmp_path / "mlruns")
    recorded = [json.loads(path.read_text())["command"] for path in tmp_path.rglob("environment.json")]
    assert recorded
    assert all("--storage postgresql://me:…@127.0.0.1" in command for command in recorded)
    assert PASSWORD not in json.dumps(attributes)
