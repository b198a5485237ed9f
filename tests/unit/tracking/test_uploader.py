"""The upload of a journal: order, batches, and how long it waits. A stand-in takes the place of MLflow's client."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from stores import FailingClient, RecordingClient, end, metric, wait_for

from runner.tracking import uploader
from runner.tracking.journal import Journal, Owner
from runner.tracking.uploader import Uploader, deliver, short_reason


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal.create(tmp_path, Owner.this_process("nowhere", "run"))


@pytest.fixture
def client() -> Any:
    return RecordingClient()


def test_events_are_uploaded_in_order(journal: Journal, client: Any) -> None:
    journal.artifact_path("figures/loss.png").write_text("x")
    journal.append({"kind": "params", "values": {"a": "1"}})
    journal.append(metric("loss", 2.0, 1))
    journal.append({"kind": "artifact", "file": "figures/loss.png", "folder": "figures"})
    journal.append(metric("loss", 1.0, 2))
    journal.append({"kind": "input", "name": "data", "digest": "d", "source": "s", "profile": "{}"})
    journal.append({"kind": "tags", "values": {"note": "n"}})
    assert deliver(journal, client) is False
    journal.append(end())
    assert deliver(journal, client) is True
    assert client.calls == [
        *("param a", "metric loss 1", "artifact figures/loss.png", "metric loss 2", "input data"),
        *("tag note", "end FINISHED"),
    ]
    assert journal.pending() == []


def test_only_pending_events_are_uploaded(journal: Journal) -> None:
    first: Any = RecordingClient()
    second: Any = RecordingClient()
    journal.append(metric("loss", 2.0, 1))
    deliver(journal, first)
    journal.append(metric("loss", 1.0, 2))
    deliver(Journal.find_all(journal.folder.parent)[0], second)  # as another process reads it
    assert (first.calls, second.calls) == (["metric loss 1"], ["metric loss 2"])


def test_a_second_end_does_not_stop_the_upload(journal: Journal, client: Any) -> None:
    """Another process may have written the first one, for a run that was then resumed."""
    thread = Uploader(journal, client)
    thread.start()
    for step, event in enumerate((end("KILLED"), end("FINISHED")), 1):
        journal.append(metric("loss", 1.0, step))
        journal.append(event)
        thread.notify()
        wait_for(lambda: not journal.pending())
        assert thread.is_alive()
    assert thread.close() is True
    assert client.calls == ["metric loss 1", "end KILLED", "metric loss 2", "end FINISHED"]


def test_a_closed_uploader_has_not_delivered_what_was_logged_later(journal: Journal, client: Any) -> None:
    thread = Uploader(journal, client)
    thread.start()
    assert thread.close() is True
    journal.append(metric("loss", 1.0, 1))
    assert thread.close(0.1) is False


def test_the_end_of_a_run_does_not_wait_for_ever(
    journal: Journal, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "UPLOAD_TIMEOUT", 0.3)
    away: Any = FailingClient(client, 10**9, ("set_terminated",))
    thread = Uploader(journal, away)
    thread.start()
    journal.append(end())
    started = time.monotonic()
    assert thread.close() is False
    assert time.monotonic() - started < 30
    assert isinstance(thread.error, ConnectionError)


def test_an_uploader_that_is_stopped_sends_nothing_more(journal: Journal, client: Any) -> None:
    away: Any = FailingClient(client, 10**9, ("log_batch",))
    thread = Uploader(journal, away)
    thread.start()
    journal.append(metric("loss", 1.0, 1))
    assert thread.close(0.1) is False
    assert thread.stop() is True
    away.failures = 0  # the server is back
    time.sleep(1)
    assert client.calls == []
    assert len(journal.pending()) == 1


def test_a_stop_takes_effect_after_the_present_request(journal: Journal) -> None:
    asked, go_on = threading.Event(), threading.Event()

    class SlowClient(RecordingClient):
        def log_batch(self, *args: Any) -> None:
            asked.set()
            go_on.wait(60)
            super().log_batch(*args)

    client: Any = SlowClient()
    thread = Uploader(journal, client)
    thread.start()
    journal.append(metric("loss", 1.0, 1))
    journal.append(end())
    thread.notify()
    assert asked.wait(60)
    threading.Timer(0.2, go_on.set).start()
    assert thread.stop() is True
    assert client.calls == ["metric loss 1"]
    assert [event["kind"] for _, event in journal.pending()] == ["end"]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("HTTPConnectionPool: Max retries exceeded with url", "the tracking server does not answer"),
        ("too many 500 error responses", "the tracking server answers with errors"),
        ("bad value\nand a traceback", "bad value"),
        ("http://user:secret@host refused", "http://user:…@host refused"),
        ("x" * 300, f"{'x' * 200}…"),
    ],
)
def test_the_reason_of_a_failed_upload_is_short(message: str, shown: str) -> None:
    assert short_reason(ValueError(message)) == shown
