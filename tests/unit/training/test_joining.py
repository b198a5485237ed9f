"""Waiting for the other processes of a launch: what contradicts itself, who never comes, and what is said meanwhile."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from benchmarks.support.processes import free_port
from runner.training import joining
from runner.utils.errors import UserError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of rank 1 of 2. Rank 0's port is free: nobody listens there."""
    for name, value in {**WHOLE, "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"WORLD_SIZE": ""}, "RANK is set, but WORLD_SIZE is not; set all of RANK"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "RANK is set, but MASTER_ADDR, MASTER_PORT are not"),
        ({"RANK": "x"}, "RANK is 'x', but it must be a whole number"),
        ({"RANK": "2"}, "RANK is 2 and WORLD_SIZE 2, but ranks count from 0 to 1"),
    ],
)
@pytest.mark.usefixtures("ranks")
def test_ranks_that_contradict_each_other_are_refused(
    changes: dict[str, str], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=reason):
        joining.take_ranks(1.0)


@pytest.mark.usefixtures("ranks")
def test_a_rank_0_that_cannot_be_reached_is_named_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(joining, "NOTICE", 0.1)
    with pytest.raises(UserError, match=r"not all joined at 127\.0\.0\.1:.*Connection refused"):
        joining.join(cpu=True, timeout=1.0)
    assert (
        "rank 1 waits for the other processes of this launch (2 in all) at 127.0.0.1:"
        in capsys.readouterr().err
    )
    monkeypatch.setenv("MASTER_ADDR", "no-such-host.invalid")
    with pytest.raises(UserError, match=r"not all joined at no-such-host\.invalid:"):
        joining.join(cpu=True, timeout=0.1)


@pytest.mark.usefixtures("ranks")
def test_a_rank_0_that_comes_late_is_waited_for() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", int(joining.os.environ["MASTER_PORT"])))
        threading.Timer(0.5, listener.listen).start()
        joining._wait_for_rank_0(time.monotonic() + 60)


@pytest.mark.usefixtures("ranks")
def test_a_wait_in_another_thread_ends_in_time_and_passes_on_what_happens() -> None:
    assert joining._in_thread(lambda: "joined", time.monotonic() + 60) == "joined"
    with pytest.raises(ZeroDivisionError):
        joining._in_thread(lambda: 1 // 0, time.monotonic() + 60)
    with pytest.raises(UserError, match="some have not come"):
        joining._in_thread(threading.Event().wait, time.monotonic() + 0.1)
