"""Which tracking store is used, and what is refused before MLflow is asked."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from runner.tracking.mlflow_server import (
    MLFLOW_ENVIRONMENT,
    TrackingServer,
    configure_mlflow,
    tracking_server,
)
from runner.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_tracking_uri")


@pytest.fixture
def closed_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_environment_names_the_store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://tracking.example/")
    server = tracking_server(str(tmp_path))
    assert (server.uri, server.root, server.embedded) == ("https://tracking.example", tmp_path, False)


def test_the_embedded_store_is_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    server = tracking_server("mlruns")
    assert server.uri == f"sqlite:///{tmp_path / 'mlruns' / 'mlflow.db'}"
    assert server.embedded


@pytest.mark.parametrize("uri", ["/data/mlruns", "mlruns", "./mlruns", "file:///data/mlruns"])
def test_a_folder_is_not_a_tracking_store(monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(UserError, match="MLFLOW_TRACKING_URI"):
        tracking_server("mlruns")


def test_a_store_is_not_created_by_a_command_that_only_reads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no records"):
        tracking_server(str(tmp_path)).check_exists()
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_away_is_refused_in_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, closed_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}/")
    started = time.monotonic()
    with pytest.raises(UserError, match=f"127.0.0.1:{closed_port} does not answer"):
        tracking_server(str(tmp_path)).connect()
    assert time.monotonic() - started < 30
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_is_silent_is_refused_in_seconds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("runner.tracking.mlflow_server.CONNECT_TIMEOUT", 0.5)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = TrackingServer(f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path)
        started = time.monotonic()
        with pytest.raises(UserError, match="does not answer"):
            server.connect()
        assert time.monotonic() - started < 30


@pytest.mark.parametrize("uri", ["http://local host:5000", "http://127.0.0.1:port"])
def test_an_invalid_address_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="does not answer"):
        TrackingServer(uri, tmp_path).connect()


def test_mlflows_environment_is_set_whatever_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in MLFLOW_ENVIRONMENT:
        monkeypatch.setenv(name, "something else")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "7")
    configure_mlflow()
    assert {name: os.environ[name] for name in MLFLOW_ENVIRONMENT} == MLFLOW_ENVIRONMENT
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "7", "patience is the user's to choose"
