"""Joining the processes of a launch."""

from __future__ import annotations

from datetime import timedelta

import pytest
from helpers import Make

from runner.training import devices, joining
from runner.utils.errors import UserError


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate cannot set up its state, in an environment without ranks."""

    def fail(**_: object) -> None:
        raise RuntimeError("CUDA error: initialization error")

    monkeypatch.setattr(joining, "PartialState", fail)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("broken")
def test_an_error_of_a_single_process_is_not_taken_for_one_of_joining_others() -> None:
    with pytest.raises(RuntimeError, match="CUDA error: initialization error"):
        devices.init_processes()


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize(("name", "value"), [("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")])
def test_processes_that_cannot_be_joined_are_reported_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"have not all joined .*: CUDA error"):
        devices.init_processes()


def test_a_timeout_is_at_most_a_year(make: Make) -> None:
    assert timedelta(minutes=make("--train.timeout", "525600").train.timeout) == timedelta(days=365)
    with pytest.raises(UserError, match=r"train.timeout.* at most 525600"):
        make("--train.timeout", "1e13")
