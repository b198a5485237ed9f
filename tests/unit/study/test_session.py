"""The MLflow run of a study: which hosts may use it, and how it ends while the server is away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from runner.study import session
from runner.study.outages import Outage
from runner.study.session import StudyRun, _check_same_store, close_study_run
from runner.tracking import server_outages
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.process_identity import this_host
from runner.utils.errors import UserError

URI = "sqlite:////somewhere/mlruns/mlflow.db"
AWAY = MlflowException("API request failed with exception HTTPConnectionPool(…): Max retries exceeded")


def check(host: str) -> None:
    study: Any = SimpleNamespace(plan=SimpleNamespace(name="some", storage="postgresql://there/studies"))
    _check_same_store(study, [URI, host], TrackingServer(URI, Path("/somewhere/mlruns")))


def test_a_machine_goes_on_after_a_reboot() -> None:
    machine = this_host().rpartition("/")[0]
    for host in (this_host(), f"{machine}/0000abcd", machine):
        check(host)


def test_a_database_file_is_not_used_by_another_machine() -> None:
    _, _, rest = this_host().partition("/")
    with pytest.raises(UserError, match=r"database file on elsewhere/.*several hosts need an MLflow server"):
        check(f"elsewhere/{rest}")


class Client:
    """An MLflow client whose first `failures` requests of a kind get no answer."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.status = "RUNNING"

    def search_experiments(self, **_: object) -> None:
        """What is asked without the lock; always answered."""

    def set_terminated(self, _run_id: str, status: str) -> None:
        self.failures -= 1
        if self.failures >= 0:
            raise AWAY
        self.status = status


@pytest.fixture
def close(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Client, str], list[str]]:
    """`close(client, status)`: end the study's run. Returns the warnings; nobody waits while the lock is held."""
    warnings: list[str] = []
    lock = threading.Lock()
    monkeypatch.setattr(server_outages, "FIRST_RETRY", 0.0)
    monkeypatch.setattr(session, "STOPPING_PATIENCE", 0.0)

    def sleep(_seconds: float) -> None:
        assert not lock.locked()

    monkeypatch.setattr("runner.tracking.server_outages.time.sleep", sleep)

    def close(client: Client, status: str) -> list[str]:
        study: Any = SimpleNamespace(lock=lock, outage=Outage("it"), requeue_stale_trials=list, trials=list)
        terminal = SimpleNamespace(warn=warnings.append)
        server = TrackingServer("http://127.0.0.1:1", tmp_path)
        tracking: Any = SimpleNamespace(client=client, server=server, terminal=terminal)
        close_study_run(study, tracking, StudyRun("0123", "some"), status)
        assert not lock.locked()
        return warnings

    return close


def test_the_study_is_not_locked_while_the_server_is_away(
    close: Callable[[Client, str], list[str]],
) -> None:
    client = Client(failures=3)
    assert close(client, "FINISHED") == []
    assert client.status == "FINISHED"


def test_a_stopped_study_does_not_wait_for_the_server(close: Callable[[Client, str], list[str]]) -> None:
    client = Client(failures=10**9)
    assert "could not be ended in MLflow: The tracking server has not answered" in close(client, "KILLED")[0]
    assert client.failures == 10**9 - 1
