"""The journal on disk: whole events in order, damage, and who may work on it."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from stores import dead_owner, end, metric, resumable

from runner.tracking.journal import HEARTBEAT_TIMEOUT, LOCK_NAME, REMOVED_SUFFIX, Journal, Owner


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """A new journal of this process."""
    return Journal.create(tmp_path, Owner.this_process("nowhere", "run"))


# Events


def test_events_are_read_back_in_order(journal: Journal) -> None:
    events = [metric("loss", 2.0, 1), {"kind": "tags", "values": {"note": "ä"}}, end()]
    for event in events:
        journal.append(event)
    assert journal.events() == events
    assert [event for _, event in journal.pending()] == events
    assert journal.ended


def test_delivered_events_are_not_pending(journal: Journal) -> None:
    journal.append(metric("loss", 2.0, 1))
    journal.mark_sent(journal.pending()[-1][0])
    journal.append(metric("loss", 1.0, 2))
    again = Journal.find_all(journal.folder.parent)[0]  # as another process reads it
    assert [event["step"] for _, event in again.pending()] == [2]


@pytest.mark.parametrize("sent", ["", "x", "-3", "5", "9" * 30])
def test_all_events_are_pending_if_the_position_is_damaged(journal: Journal, sent: str) -> None:
    journal.append(metric("loss", 2.0, 1))
    (journal.folder / "sent").write_text(sent)
    assert len(journal.pending()) == 1


def test_a_partial_last_line_is_not_an_event(journal: Journal) -> None:
    journal.append(metric("loss", 2.0, 1))
    line = json.dumps(metric("loss", 1.0, 2)) + "\n"
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write(line[:20])
        file.flush()
        assert [event["step"] for _, event in journal.pending()] == [1]
        file.write(line[20:])
    assert [event["step"] for _, event in journal.pending()] == [1, 2]


def test_repair_removes_a_partial_last_line(journal: Journal) -> None:
    journal.append(metric("loss", 2.0, 1))
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write('{"kind": "metrics", "step": 2, "ti')
    journal.repair()
    journal.append(metric("loss", 1.0, 3))
    assert [event["step"] for event in journal.events()] == [1, 3]


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"kind": "unknown"}',
        '{"kind": "metrics", "step": "1", "time": 1, "values": {}}',
        '{"kind": "metrics", "step": 1, "time": 1, "values": {"loss": "low"}}',
        '{"kind": "tags", "values": {"note": 1}}',
        '{"kind": "artifact", "file": "../../secret", "folder": ""}',
        '{"kind": "artifact", "file": "/etc/passwd", "folder": ""}',
        "[" * 100_000,
    ],
)
def test_a_damaged_line_is_skipped(journal: Journal, line: str) -> None:
    journal.append(metric("loss", 2.0, 1))
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write(line + "\n")
    journal.append(metric("loss", 1.0, 2))
    assert [event["step"] for _, event in journal.pending()] == [1, 2]


def test_threads_that_append_at_once_do_not_mix_their_lines(journal: Journal) -> None:
    def write(thread: int) -> None:
        for step in range(20):
            journal.append(metric("m" * 500, thread, step))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [(event["values"]["m" * 500], event["step"]) for _, event in journal.pending()]
    assert len(found) == 80
    for number in range(4):
        assert [step for thread, step in found if thread == number] == list(range(20))


def test_a_full_disk_leaves_no_partial_line(journal: Journal) -> None:
    """What a failed append leaves behind must not merge with the next event."""
    journal.append(metric("loss", 3.0, 1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (journal.folder / "events.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            journal.append(metric("loss", 2.0, 2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    journal.append(metric("loss", 1.0, 3))
    assert [event["step"] for _, event in journal.pending()] == [1, 3]


def test_the_time_never_goes_back(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    first = journal.now_ms()
    monkeypatch.setattr("runner.tracking.journal.now_ms", lambda: first - 5000)
    assert journal.now_ms() == first


def test_files_without_an_event_are_found(journal: Journal) -> None:
    for name in ("note.txt", "figures/loss.png", "figures/.loss.png.partial"):
        journal.artifact_path(name).write_text("x")
    journal.append({"kind": "artifact", "file": "note.txt", "folder": ""})
    assert journal.unlogged_files() == [("figures/loss.png", "figures")]


# Owners


def test_only_the_owner_may_read_its_address(journal: Journal) -> None:
    """The address of a server may hold a password."""
    assert (journal.folder / "owner.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"pid": "x"}', '{"uri": 1, "run_id": "r", "host": "h", "pid": 1, "started": 1}'],
)
def test_a_folder_with_a_damaged_owner_is_not_a_journal(journal: Journal, content: str) -> None:
    (journal.folder / "owner.json").write_text(content)
    assert Journal.load(journal.folder) is None
    assert Journal.find_all(journal.folder.parent) == []


def test_a_journal_that_was_released_is_taken_over_at_once_on_any_host(tmp_path: Path) -> None:
    """As by the successor of a container, under another host name seconds later."""
    elsewhere = dataclasses.replace(dead_owner("nowhere", "run"), host="pod-a")
    journal = resumable(Journal.create(tmp_path, elsewhere))
    mine = Owner.this_process("nowhere", "run")
    with pytest.raises(FileExistsError):
        Journal.take_over(tmp_path, mine)
    journal.release()
    assert not journal.alive
    assert Journal.take_over(tmp_path, mine).alive, "it belongs to this process now"
    assert not (journal.folder / "released").exists()


def test_the_last_event_of_a_long_journal_is_found(journal: Journal) -> None:
    for step in range(500):
        journal.append(metric("loss", 1.0, step))
    assert not journal.ended
    journal.append(end())
    with (journal.folder / "events.jsonl").open("a") as file:
        file.write("damaged\n" * 5000)
    assert journal.ended


def test_a_process_of_another_host_is_dead_without_heartbeats(tmp_path: Path) -> None:
    owner = dataclasses.replace(dead_owner("nowhere", "run"), host="another-host")
    journal = Journal.create(tmp_path, owner)
    assert journal.alive
    long_ago = time.time() - 2 * HEARTBEAT_TIMEOUT
    os.utime(journal.folder / "owner.json", (long_ago, long_ago))
    assert not journal.alive
    before = journal.last_heartbeat()
    journal.heartbeat()
    assert journal.alive
    assert journal.last_heartbeat() > before
    assert {path.name for path in journal.folder.iterdir()} == {"owner.json", "files"}, "no probe is left"


def test_a_run_is_resumable_until_it_has_finished(journal: Journal) -> None:
    assert not journal.resumable, "there is no state to resume from"
    resumable(journal)
    journal.append(end("KILLED"))
    assert journal.resumable
    journal.append({"kind": "begin"})
    journal.append(end("FINISHED"))
    assert not journal.resumable


# Takeover and removal


def test_only_dead_resumable_runs_are_taken_over(tmp_path: Path) -> None:
    mine = Owner.this_process("nowhere", "run")
    with pytest.raises(FileNotFoundError):
        Journal.take_over(tmp_path, mine)
    assert list(tmp_path.iterdir()) == []
    journal = Journal.create(tmp_path, dead_owner("nowhere", "run"))
    with pytest.raises(FileNotFoundError):  # there is no state
        Journal.take_over(tmp_path, mine)
    resumable(journal)
    Journal.take_over(tmp_path, mine)
    assert Journal.take_over(tmp_path, mine).owner == mine, "its owner may take it again"
    with pytest.raises(FileExistsError):
        Journal.take_over(tmp_path, dataclasses.replace(mine, pid=os.getppid()))
    journal.append(end("FINISHED"))
    with pytest.raises(FileNotFoundError):
        Journal.take_over(tmp_path, mine)


def test_one_of_many_takeovers_at_once_succeeds(tmp_path: Path) -> None:
    dead = dead_owner("nowhere", "run")
    resumable(Journal.create(tmp_path, dead))
    taken: list[Owner] = []

    def take_over(number: int) -> None:
        owner = dataclasses.replace(dead, host="another-host", pid=number)
        try:
            taken.append(Journal.take_over(tmp_path, owner).owner)
        except FileExistsError:
            return

    threads = [threading.Thread(target=take_over, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert Journal.find_all(tmp_path)[0].owner == taken[0]


def test_a_takeover_continues_the_times_of_the_events(tmp_path: Path) -> None:
    journal = resumable(Journal.create(tmp_path, dead_owner("nowhere", "run")))
    future = journal.now_ms() + 10**7
    event: dict[str, Any] = {**metric("loss", 1.0), "time": future}
    journal.append(event)
    assert Journal.take_over(tmp_path, Owner.this_process("nowhere", "run")).now_ms() == future


def test_locking_a_removed_journal_does_not_create_it_again(journal: Journal) -> None:
    journal.remove()
    with Journal.locked(journal.folder) as found:
        assert found is None
    assert list(journal.folder.parent.iterdir()) == []


def test_a_removal_that_was_interrupted_leaves_no_journal(journal: Journal) -> None:
    journal.folder.rename(journal.folder.with_name(f"run{REMOVED_SUFFIX}"))
    assert Journal.find_all(journal.folder.parent) == []


def test_a_lock_in_a_journal_is_not_its_content(journal: Journal) -> None:
    with Journal.locked(journal.folder) as found:
        assert found is not None
        assert (journal.folder / LOCK_NAME).exists()
    assert Journal.find_all(journal.folder.parent)[0].owner == journal.owner
