"""What system tests share: a real S3 server, its variables, and MLflow servers that know them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from commands import user_environment
from helpers import listening
from s3_server import S3Server
from stores import copy_store

from runner.tracking import artifact_store


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def login(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`login(AWS_SECRET_ACCESS_KEY="wrong")`: the variables of the S3 server, some changed; None removes one."""

    def forget() -> None:
        if (boto3 := sys.modules.get("boto3")) is not None:
            boto3.DEFAULT_SESSION = None
        from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client

        _cached_get_s3_client.cache_clear()
        artifact_store.check_takes_files.cache_clear()

    def set_variables(**changes: str | None) -> None:
        for name, value in (s3.environment | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        forget()

    set_variables()
    yield set_variables
    forget()


@pytest.fixture(scope="module")
def start_server(
    s3: S3Server, mlflow_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., tuple[str, Path]]]:
    """`start_server("--artifacts-destination", …)`: the address of an MLflow server with these options; its folder."""
    with ExitStack() as stack:

        def start(*options: str) -> tuple[str, Path]:
            folder = tmp_path_factory.mktemp("server")
            database = copy_store(mlflow_template, folder) / "mlflow.db"
            words = [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "{port}"),
                *("--workers", "1", "--backend-store-uri", f"sqlite:///{database}", *options),
            ]
            quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
            environment = user_environment(**quiet, **s3.environment)
            ready = "/api/2.0/mlflow/experiments/search?max_results=1"
            address = stack.enter_context(listening(words, ready, folder / "server.txt", environment))
            return address, folder

        yield start
