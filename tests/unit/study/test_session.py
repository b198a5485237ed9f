"""Which hosts may use the run records of a study."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.study.session import _check_same_store
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.process_identity import this_host
from runner.utils.errors import UserError

URI = "sqlite:////somewhere/mlruns/mlflow.db"


def check(host: str) -> None:
    study: Any = SimpleNamespace(plan=SimpleNamespace(name="some", storage="postgresql://there/studies"))
    _check_same_store(study, [URI, host], TrackingServer(URI, Path("/somewhere/mlruns")))


def test_a_machine_goes_on_after_a_reboot() -> None:
    machine = this_host().rpartition("/")[0]
    for host in (this_host(), f"{machine}/0000abcd", machine):
        check(host)


def test_a_database_file_is_not_used_by_another_machine() -> None:
    _, _, rest = this_host().partition("/")
    with pytest.raises(UserError, match="database file on elsewhere/.*several hosts need an MLflow server"):
        check(f"elsewhere/{rest}")
