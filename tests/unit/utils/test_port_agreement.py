"""Tasks of a step agree on a free port, whatever else listens on their host."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from runner.utils import port_agreement
from runner.utils.cluster import ClusterTask
from runner.utils.errors import UserError
from runner.utils.port_agreement import agree_on_port, candidate_ports

TIMEOUT = 60.0


SESSION = uuid.uuid4().hex
"""Gives the steps of this test session ports of their own: they follow from a step's name."""


def step(name: str, count: int) -> list[ClusterTask]:
    name = f"{name}.{SESSION}"
    return [ClusterTask("SLURM", name, rank, count, rank, count, "127.0.0.1") for rank in range(count)]


def agree(tasks: Sequence[ClusterTask]) -> list[int]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        return list(pool.map(lambda task: agree_on_port(task, TIMEOUT), tasks))


def occupy(port: int, stack: ExitStack) -> None:
    listener = stack.enter_context(socket.socket())
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("", port))
    listener.listen()


def wait_for_listener(port: int) -> None:
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_all_tasks_get_one_port_that_is_free() -> None:
    ports = agree(step("12.0.0", 4))
    assert len(set(ports)) == 1
    with ExitStack() as stack:
        occupy(ports[0], stack)  # as torch does


def test_another_service_at_the_first_port_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_agreement, "PATIENCE", 0.2)
    with ExitStack() as stack:
        occupy(candidate_ports(f"13.0.0.{SESSION}")[0], stack)
        assert len(set(agree(step("13.0.0", 2)))) == 1


def test_two_steps_with_the_same_ports_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_agreement, "candidate_ports", lambda name: candidate_ports(f"14.0.0.{SESSION}"))
    monkeypatch.setattr(port_agreement, "PATIENCE", 0.5)
    first, second = step("14.0.0", 2)
    with ThreadPoolExecutor() as pool:
        port = pool.submit(agree_on_port, first, TIMEOUT)
        wait_for_listener(candidate_ports(f"14.0.0.{SESSION}")[0])
        others = agree(step("15.0.0", 2))
        assert others[0] == others[1] != agree_on_port(second, TIMEOUT) == port.result()


def test_ports_that_are_all_busy_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    port = candidate_ports(f"16.0.0.{SESSION}")[0]
    monkeypatch.setattr(port_agreement, "candidate_ports", lambda name: [port])
    with ExitStack() as stack:
        occupy(port, stack)
        with pytest.raises(UserError, match=r"All of the 1 ports .* step 16\.0\.0\.\w+ may meet are busy"):
            agree_on_port(step("16.0.0", 2)[0], 1)


def test_tasks_that_never_come_are_named() -> None:
    with pytest.raises(UserError, match=r"2 of 3 tasks .* have not called rank 0 .*ranks 1, 2"):
        agree_on_port(step("17.0.0", 3)[0], 0.2)


def test_it_is_said_for_whom_a_task_waits(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(port_agreement, "NOTICE", 0.1)
    with pytest.raises(UserError):
        agree_on_port(step("19.0.0", 3)[0], 2)
    said = capsys.readouterr().err
    assert "waiting up to 2 s for the other 2 tasks of the SLURM step 19.0.0" in said
    assert "unset SLURM_STEP_NUM_TASKS" in said


def test_a_rank_0_that_never_comes_is_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"Rank 0 of the SLURM step 18\.0\.0\.\w+ on 127\.0\.0\.1 could not be reached"
    ):
        agree_on_port(step("18.0.0", 2)[1], 0.3)


def test_tasks_that_have_their_answer_are_not_kept_from_the_store() -> None:
    """They connect to torch's store at the agreed port while rank 0 still waits there for a late task."""
    first, second, late = step("20.0.0", 3)

    def join(task: ClusterTask) -> None:
        port = agree_on_port(task, TIMEOUT)
        TCPStore("127.0.0.1", port, 3, task.rank == 0, timedelta(seconds=TIMEOUT))

    start = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        joined = [pool.submit(join, first), pool.submit(join, second)]
        time.sleep(1)
        joined.append(pool.submit(join, late))
        for each in joined:
            each.result(2 * TIMEOUT)
    assert time.monotonic() - start < port_agreement.CONFIRMATION / 2


def test_strangers_that_call_are_not_counted() -> None:
    with ThreadPoolExecutor(2) as pool:
        first, second = step("19.0.0", 2)
        port = pool.submit(agree_on_port, first, TIMEOUT)
        for words in (
            b"GET / HTTP/1.0\r\n\r\n",
            f"18.0.0.{SESSION} 1\n".encode(),
            b"\xff\xfe\n",
            b"",
            f"19.0.0.{SESSION} 1\n".encode(),
            f"19.0.0.{SESSION} x\nthanks\n".encode(),
        ):
            caller = None
            while caller is None:
                try:
                    caller = socket.create_connection(
                        ("127.0.0.1", candidate_ports(f"19.0.0.{SESSION}")[0]), 5
                    )
                except ConnectionRefusedError:
                    continue
            with caller:
                caller.sendall(words)
        assert not port.done()
        assert agree_on_port(second, TIMEOUT) == port.result()
