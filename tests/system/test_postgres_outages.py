"""A PostgreSQL server that restarts, loses answers, or takes the lock away: no trial of a study is lost or doubled."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from optuna.trial import TrialState
from postgres import PASSWORD, postgres_server
from studies import LR, WORKER_TIMEOUT, make_plan, score, start_process, states, work

from benchmarks.support.postgres import PostgresServer
from runner.study import database_lock, outages, storage
from runner.study import study as study_module
from runner.study.database_lock import DatabaseLock
from runner.study.outages import DatabaseAwayError, Outage
from runner.study.plan import Plan
from runner.study.space import Space
from runner.study.study import Study
from runner.study.trials import is_baseline, is_lost
from runner.utils.errors import UserError

Make = Callable[..., Plan]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
def plan(server: PostgresServer, request: pytest.FixtureRequest) -> Make:
    """`plan(trials=9)`: a study in the database, named after the test, with some fields changed."""
    fields: dict[str, Any] = {"name": request.node.name, "space": Space((LR,)), "trials": 5}
    return lambda storage=server.address, **changes: make_plan(storage, **{**fields, **changes})


def execute(server: PostgresServer, words: str, *values: Any) -> list[Any]:
    """The rows of a query."""
    with psycopg.connect(server.address, autocommit=True) as connection:
        return connection.execute(words, values).fetchall()


def end_connections(server: PostgresServer, name: str = "%") -> None:
    """End all connections, or those with such a name, as an administrator does."""
    words = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        " AND pid <> pg_backend_pid() AND application_name LIKE %s"
    )
    execute(server, words, name)


def check_complete(study: Study, count: int) -> None:
    """Each trial once, one of them the baseline, none of them lost."""
    trials = study.trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == count, states(study)
    assert sum(map(is_baseline, complete)) == 1
    assert max(Counter(str(trial.params) for trial in complete).values()) == 1
    assert all(trial.value == score(trial.params) for trial in complete)
    assert all(trial.state == TrialState.COMPLETE or is_lost(trial) for trial in trials)
    assert study.is_finished


def test_a_restart_is_waited_for(server: PostgresServer, plan: Make, tmp_path: Path) -> None:
    study, notes = Study(plan(), tmp_path), []

    def notify(note: str) -> None:
        notes.append(note)
        if "does not answer" in note:
            server.start()

    study.outage.notify = notify
    for number in range(5):
        server.stop()
        if number % 2:
            study.ask()  # it starts meanwhile
        else:
            server.start()
            study.ask()
            server.stop()
            server.start()
        assert not study.report(1, 0.5)
        study.annotate(run="run")
        study.complete(score(study.trials()[number].params))
    check_complete(study, 5)
    away, back_again = (
        sum(words in note for note in notes) for words in ("does not answer", "answers again")
    )
    assert away == back_again == 2, notes
    assert PASSWORD not in str(notes)


def lose_answers(dialect: Any) -> Iterator[int]:
    """Every second commit is done, but its answer does not arrive. Returns the number of the next commit."""
    real, commits = dialect.do_commit, iter(range(10**6))

    def commit(connection: Any) -> None:
        real(connection)
        if next(commits) % 2 == 0:
            raise psycopg.OperationalError("the answer got lost")

    dialect.do_commit = commit
    return commits


def lose_connections(dialect: Any) -> Iterator[int]:
    """The connection ends in every 31st statement. Returns the number of the next one."""
    real, statements = dialect.do_execute, iter(range(10**6))

    def execute(cursor: Any, *arguments: Any) -> None:
        if next(statements) % 31 == 30:
            cursor.connection.close()
        real(cursor, *arguments)

    dialect.do_execute = execute
    return statements


@pytest.mark.parametrize("break_something", [lose_answers, lose_connections])
def test_what_is_done_again_is_not_doubled(
    plan: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    break_something: Callable[[Any], Iterator[int]],
) -> None:
    monkeypatch.setattr(outages, "FIRST_RETRY", 0.0)
    monkeypatch.setattr(
        "random.random", lambda: 0.0
    )  # Optuna waits that long before it creates a trial again
    study = Study(plan(trials=8), tmp_path)
    calls = break_something(study.storage.engine.dialect)  # type: ignore[attr-defined]
    study.ask()
    study.interrupt("stopped by SIGINT")
    assert states(study) == ["FAIL", "WAITING"]
    work(study)
    check_complete(study, 8)
    assert states(study) == ["FAIL", *["COMPLETE"] * 8]
    assert next(calls) > 50


def test_a_database_that_stays_away_ends_the_wait(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_server() as server:
        study = Study(plan(storage=server.address), tmp_path)
        study.ask()
        server.stop()
        monkeypatch.setattr(study_module, "STOPPING_PATIENCE", 0.3)
        study.outage.patience = 0.3
        with pytest.raises(
            DatabaseAwayError, match=r"has not answered for 0 s .*; start it.*same command"
        ) as caught:
            study.trials()
        assert PASSWORD not in str(caught.value)
        study.outage.patience = 600
        start = time.monotonic()
        study.interrupt("stopped by SIGTERM")
        assert time.monotonic() - start < 20
        assert not study._running


def test_a_refused_login_is_not_waited_for(server: PostgresServer, plan: Make, tmp_path: Path) -> None:
    notes: list[str] = []
    address = server.address.replace(PASSWORD, "wrong-word")
    with pytest.raises(UserError, match="password authentication failed"):
        storage.connect(address, Outage(address, notes.append))
    assert notes == []


def lock_of(server: PostgresServer, name: str, notes: list[str] | None = None) -> DatabaseLock:
    lock = storage.study_lock(Path("unused"), server.address, name, Outage("some", (notes or []).append))
    assert isinstance(lock, DatabaseLock)
    return lock


def test_a_lock_is_of_one_process(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others wait for it, and say for whom."""
    monkeypatch.setattr(database_lock, "LOCK_TIMEOUT_MS", 50)
    monkeypatch.setattr(database_lock, "NOTE_AFTER", 0.2)
    order: list[str] = []
    notes: list[str] = []
    lock, other, third = lock_of(server, "one"), lock_of(server, "one"), lock_of(server, "another")
    other.outage.notify = notes.append

    def wait() -> None:
        with other:
            order.append("other")

    thread = threading.Thread(target=wait)
    with lock:
        with lock, third:
            thread.start()
            deadline = time.monotonic() + 60
            while not notes and time.monotonic() < deadline:
                time.sleep(0.02)
        order.append("one")
    thread.join(60)
    assert order == ["one", "other"]
    assert notes == [
        f"waiting for runner on {os.uname().nodename[:30]}, process {os.getpid()}, which locks the study one"
    ]
    assert [lock.lost, other.lost, third.lost] == [False] * 3
    with (
        lock,
        other.outage.limit(0.2),  # as of a process that was stopped
        pytest.raises(
            DatabaseAwayError, match=r"'one' has been locked for .* by runner on .*; end that process"
        ),
    ):
        other.acquire()


def test_a_queue_that_moves_is_waited_for(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hold the lock in turn, also for longer than a process would wait for one of them."""
    monkeypatch.setattr(database_lock, "LOCK_TIMEOUT_MS", 20)
    monkeypatch.setattr(database_lock, "PATIENCE", 1.0)
    names: list[str] = []
    lock, other = lock_of(server, "queue"), lock_of(server, "queue")
    monkeypatch.setattr(other, "_holder", lambda connection: names.append("") or f"process {len(names)}")
    start = time.monotonic()
    with ThreadPoolExecutor() as pool, lock:
        wait = pool.submit(other.acquire)
        while time.monotonic() < start + 2.5 or len(names) < 3:
            assert not wait.done()
            time.sleep(0.02)
        lock.release()
        wait.result(60)
        other.release()
        lock.acquire()
        with other.outage.limit(0.5), pytest.raises(DatabaseAwayError):  # as of a process that was stopped
            other.acquire()


def test_a_frozen_process_loses_the_lock(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as frozen_only:
        frozen_only.setattr(database_lock, "IDLE_TIMEOUT_MS", 200)
        frozen_only.setattr(database_lock, "KEEPALIVE_INTERVAL", 1000.0)
        frozen = lock_of(server, "frozen")
        frozen.acquire()
    with lock_of(server, "frozen") as other:
        assert isinstance(other, DatabaseLock)
        frozen.release()
        assert frozen.lost
    assert not other.lost
    frozen.acquire()
    assert not frozen.lost
    frozen.release()


def test_a_process_that_lives_shows_it(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_lock, "KEEPALIVE_INTERVAL", 0.05)
    words = "SELECT state_change FROM pg_stat_activity WHERE application_name LIKE 'runner on %%'"
    with lock_of(server, "alive"):
        first, deadline = execute(server, words), time.monotonic() + 60
        while execute(server, words) == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(first) == 1
        assert execute(server, words) != first


def test_a_killed_process_releases_the_lock(server: PostgresServer, plan: Make, tmp_path: Path) -> None:
    about = plan(name="killed")
    process = start_process(about, tmp_path, "study.lock.acquire()\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert process.communicate(timeout=WORKER_TIMEOUT)[1] == ""
    assert process.returncode == -signal.SIGKILL
    assert len(work(Study(about, tmp_path))) == 5


def test_a_trial_started_under_a_lost_lock_is_given_up(
    server: PostgresServer, plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker may have started the last trial meanwhile. Values that were queued are not lost with it."""
    study = Study(plan(), tmp_path)
    record, losses = Study.record_heartbeat, []

    def lose_lock(self: Study) -> None:
        record(self)
        if len(losses) < 3:
            losses.append(len(self.trials()))
            end_connections(server, "runner on %")

    monkeypatch.setattr(Study, "record_heartbeat", lose_lock)
    work(study)
    assert len(losses) == 3
    check_complete(study, 5)
    assert states(study) == [*["FAIL"] * 3, *["COMPLETE"] * 5]
    assert all("locked the study" in trial.user_attrs["lost"] for trial in study.trials()[:3])


def test_hosts_may_have_different_time_zones(
    server: PostgresServer, plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table of heartbeats stores no time zone."""
    for zone in ("Asia/Tokyo", "America/New_York"):
        monkeypatch.setenv("PGTZ", zone)
        study = Study(plan(name=zone), tmp_path)
        study.ask()
        (heartbeat,) = study.storage.heartbeats(study.optuna._study_id).values()  # type: ignore[attr-defined]
        assert abs((datetime.now(UTC).replace(tzinfo=None) - heartbeat).total_seconds()) < 600


def test_values_whose_finder_died_are_queued_later(plan: Make, tmp_path: Path) -> None:
    """A process found a trial stale and died before it queued the values again; then two find that at once."""
    one, other = Study(plan(), tmp_path), Study(plan(), tmp_path)
    one.ask()
    number, trial = next(iter(one._running.items()))
    other.optuna._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    for study in (one, other):
        study.requeue_stale_trials()
    assert states(other) == ["FAIL", "WAITING"]
    assert one.why_dropped(number).startswith("Trial 0 was given up")
    one.complete(0.5)
    work(other)
    check_complete(other, 5)
