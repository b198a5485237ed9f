"""Waiting for a tracking server that is away."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException, RestException

from runner.tracking import server_outages
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.server_outages import wait_for_server
from runner.utils.errors import UserError

SERVER = TrackingServer("http://127.0.0.1:1", Path("unused"))
AWAY = MlflowException("API request failed with exception HTTPConnectionPool(…): Max retries exceeded")
REFUSED = RestException({"error_code": "INVALID_PARAMETER_VALUE", "message": "no such name"})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_outages, "FIRST_RETRY", 0.0)


def test_a_server_that_comes_back_is_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([AWAY, AWAY, None])

    def request() -> str:
        if (error := next(answers)) is not None:
            raise error
        return "answer"

    assert wait_for_server(SERVER, request) == "answer"
    assert capsys.readouterr().out.count("the tracking server does not answer; waiting up to 300 s") == 1


def test_who_stops_waits_less_long() -> None:
    def request() -> None:
        raise MlflowException("API request failed with exception: the proxy is confused")

    with pytest.raises(UserError, match=r"not answered for 0 s \(API request .* confused\); start it"):
        wait_for_server(SERVER, request, patience=0.0)


def test_the_wait_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_outages, "PATIENCE", 0.05)

    def request() -> None:
        raise AWAY

    with pytest.raises(UserError, match="The tracking server has not answered for 0 s; start it"):
        wait_for_server(SERVER, request)


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("http://127.0.0.1:1", REFUSED),
        ("http://127.0.0.1:1", UserError("The artifacts cannot be stored.")),
        ("sqlite:////tmp/mlflow.db", AWAY),
    ],
)
def test_what_does_not_change_is_not_waited_for(uri: str, error: Exception) -> None:
    calls = []

    def request() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        wait_for_server(TrackingServer(uri, Path("unused")), request)
    assert len(calls) == 1
