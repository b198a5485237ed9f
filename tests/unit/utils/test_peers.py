"""A process notices that another one of its launch is gone, and ends with the reason."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import pytest

from runner.utils import peers
from runner.utils.peers import PeerWatchdog

PATIENCE = 30
"""Seconds that a condition may take on a busy machine."""


class MemoryStore:
    """What torch's store does, in this process. `cut` makes it answer nobody, as behind a cut cable."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.lock = threading.Lock()
        self.cut = threading.Event()

    def set(self, key: str, value: str) -> None:
        self._wait()
        self.values[key] = value.encode()

    def get(self, key: str) -> bytes:
        self._wait()
        return self.values[key]

    def check(self, keys: list[str]) -> bool:
        self._wait()
        return all(key in self.values for key in keys)

    def multi_get(self, keys: list[str]) -> list[bytes]:
        self._wait()
        return [self.values[key] for key in keys]

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        self._wait()
        with self.lock:
            return self.values.setdefault(key, desired.encode())

    def set_timeout(self, timeout: timedelta) -> None:
        assert timeout

    def _wait(self) -> None:
        while self.cut.is_set():
            time.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Short intervals. Returns the signals that a process sends itself instead of receiving them."""
    sent: list[int] = []
    for name, seconds in (("INTERVAL", 0.05), ("SILENCE", 1.0), ("UNWINDING", 0.2), ("ANSWER", PATIENCE)):
        monkeypatch.setattr(peers, name, seconds)
    monkeypatch.setattr(peers.os, "kill", lambda pid, number: sent.append(number))
    monkeypatch.setattr(peers, "LAST_RESORT", 600.0)
    return sent


def launch(store: MemoryStore, count: int) -> tuple[list[PeerWatchdog], list[int]]:
    """The processes of a launch, and the ranks whose collective operations were ended."""
    aborted: list[int] = []

    def abort_of(rank: int) -> Callable[[], None]:
        return lambda: aborted.append(rank)

    labels = [f"node{rank} (rank {rank})" for rank in range(count)]
    everyone = [PeerWatchdog(store, rank, labels, abort_of(rank)) for rank in range(count)]
    for each in everyone:
        each.start()
    return everyone, aborted


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def vanish(process: PeerWatchdog) -> None:
    """It says nothing any more, not even that it ends."""
    process._ended.set()


def end_all(everyone: list[PeerWatchdog]) -> None:
    for each in everyone:
        each.announce_end()


def test_all_is_well_while_all_are_there(quick: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "SILENCE", 600.0)
    everyone, aborted = launch(MemoryStore(), 3)
    start = time.monotonic()
    wait_for(lambda: min(each._rounds for each in everyone) > 30)
    heard = max(silence for each in everyone for silence in each._silent.values())
    assert heard < (time.monotonic() - start) / 2, "a new number ends a silence"
    assert [each.failure_reason() for each in everyone] == ["", "", ""]
    end_all(everyone)
    assert not aborted
    assert not quick


@pytest.mark.parametrize("victim", [0, 2])
def test_one_that_vanishes_ends_all_others_with_its_name(victim: int) -> None:
    everyone, aborted = launch(MemoryStore(), 3)
    vanish(everyone[victim])
    others = [each for each in everyone if each.rank != victim]
    wait_for(lambda: len(set(aborted)) == 2)
    for each in others:
        assert f"Nothing has been heard of node{victim} (rank {victim})" in each.failure_reason()
        assert each.signal is None
    assert victim not in aborted
    end_all(everyone)


def test_a_store_that_does_not_answer_counts_as_the_loss_of_the_first_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "ANSWER", 0.2)
    store = MemoryStore()
    everyone, aborted = launch(store, 2)
    vanish(everyone[0])
    store.cut.set()
    wait_for(lambda: aborted)
    assert "Nothing has been heard of node0 (rank 0)" in everyone[1].failure_reason()
    store.cut.clear()
    end_all(everyone)


def test_the_host_of_the_store_is_named_where_the_store_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(peers, "ANSWER", 0.2)
    store, labels = MemoryStore(), ["node0 (rank 0)", "node1 (rank 1)", "node2 (rank 2)"]
    aborted: list[int] = []
    own = PeerWatchdog(store, 0, labels, lambda: aborted.append(0), store_label=labels[2])
    own.start()
    store.cut.set()
    wait_for(lambda: aborted)
    assert "Nothing has been heard of node2 (rank 2) for" in own.failure_reason()
    store.cut.clear()
    own.announce_end()


def test_those_that_have_finished_are_not_missed() -> None:
    everyone, aborted = launch(MemoryStore(), 3)
    everyone[1].announce_end()
    everyone[2].announce_end()
    time.sleep(2 * peers.SILENCE)
    assert everyone[0].failure_reason() == ""
    assert not aborted
    end_all(everyone)


def test_a_failure_reaches_the_others_in_its_own_words() -> None:
    everyone, aborted = launch(MemoryStore(), 3)
    everyone[1].announce_end("The disk is full.")
    assert everyone[0].failure_reason() == everyone[2].failure_reason() == "node1 (rank 1): The disk is full."
    wait_for(lambda: sorted(aborted) == [0, 2])
    end_all(everyone)


def test_the_first_failure_counts() -> None:
    everyone, _ = launch(MemoryStore(), 3)
    everyone[1].announce_end("The disk is full.")
    everyone[2].announce_end("Another process is gone.")
    assert everyone[0].failure_reason() == "node1 (rank 1): The disk is full."
    end_all(everyone)


def test_what_is_said_of_another_process_is_passed_on_without_the_name_of_who_says_it() -> None:
    everyone, _ = launch(MemoryStore(), 3)
    everyone[1].announce_end("A process of this launch on node2 exited.", of_another=True)
    assert everyone[0].failure_reason() == "A process of this launch on node2 exited."
    end_all(everyone)


def test_a_stop_by_torchs_launcher_is_nobodys_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    everyone, _ = launch(MemoryStore(), 2)
    everyone[1].announce_end("stopped by SIGTERM", signal.SIGTERM)
    assert everyone[0].failure_reason() == ""
    end_all(everyone)


def test_a_lost_connection_is_said_with_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    labels = ["node0 (rank 0)", "node1 (rank 1)"]
    own = PeerWatchdog(store, 0, labels, lambda: None, {"10.0.0.7": "node1"})
    error = RuntimeError("[pair.cc:561] Connection closed by peer [10.0.0.7]:27293. This is typically")
    assert peers.explain_lost_connection(error).startswith("A process of this launch exited unexpectedly")
    monkeypatch.setattr(peers, "_watchdog", own)
    assert peers.explain_lost_connection(error).startswith(
        "A process of this launch on node1 exited unexpectedly"
    )
    assert peers.explain_lost_connection(RuntimeError("Broken pipe")).startswith(
        "A process of this launch exited"
    )
    assert peers.explain_lost_connection(RuntimeError("another error")) == ""
    assert peers.explain_lost_connection(ValueError("Broken pipe")) == ""
    PeerWatchdog(store, 1, labels, lambda: None).announce_end("The disk is full.")
    assert peers.explain_lost_connection(error) == "node1 (rank 1): The disk is full."
    assert peers.explain_lost_connection(ValueError("any error then")) == "node1 (rank 1): The disk is full."


def test_a_process_in_no_collective_operation_is_interrupted(quick: list[int]) -> None:
    everyone, _ = launch(MemoryStore(), 2)
    everyone[1].announce_end("The disk is full.")
    wait_for(lambda: signal.SIGTERM in quick)
    assert everyone[0].failure_reason()
    end_all(everyone)


def test_one_that_notices_is_left_to_end_by_itself(quick: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "UNWINDING", PATIENCE)
    everyone, aborted = launch(MemoryStore(), 2)
    everyone[1].announce_end("The disk is full.")
    assert everyone[0].failure_reason()
    wait_for(lambda: aborted)
    wait_for(everyone[0]._ended.is_set)  # the watch has ended
    assert not quick
    end_all(everyone)


def test_one_that_has_noticed_gets_no_signal(quick: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be writing a snapshot."""
    monkeypatch.setattr(peers, "UNWINDING", PATIENCE)
    own = PeerWatchdog(MemoryStore(), 0, ["node0 (rank 0)", "node1 (rank 1)"], lambda: None)
    PeerWatchdog(own.store, 1, own.labels, lambda: None).announce_end("stopped by SIGUSR1", signal.SIGUSR1)
    assert own.failure_reason()
    own._interrupt()
    assert own.signal == signal.SIGUSR1
    assert not quick


def test_a_stop_signal_of_one_stops_the_others_too(quick: list[int]) -> None:
    everyone, aborted = launch(MemoryStore(), 2)
    everyone[1].announce_end("stopped by SIGUSR1", signal.SIGUSR1)
    wait_for(lambda: aborted)
    assert quick[0] == signal.SIGUSR1
    assert everyone[0].signal == signal.SIGUSR1
    end_all(everyone)


def test_time_in_which_a_process_was_stopped_itself_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(peers.time, "monotonic", lambda: clock[0])
    own = PeerWatchdog(MemoryStore(), 1, ["node0 (rank 0)", "node1 (rank 1)"], lambda: None)
    rounds = iter([10.0, 20.0, 20.05, 20.1])

    def wait(_seconds: float) -> bool:
        clock[0] = next(rounds, -1.0)
        return clock[0] < 0

    monkeypatch.setattr(own._ended, "wait", wait)
    own._look_for_silence()
    assert own._silent[0] == pytest.approx(0.1)
    assert not own.reason


def test_a_process_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    exits: list[int] = []
    monkeypatch.setattr(peers, "LAST_RESORT", 0.1)
    monkeypatch.setattr(os, "_exit", exits.append)
    everyone, _ = launch(MemoryStore(), 2)
    everyone[1].announce_end("The disk is full.")
    wait_for(lambda: exits)
    assert exits == [2]
    end_all(everyone)
