"""Studies in PostgreSQL: a server is started for the tests and deleted after them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState
from postgres import PASSWORD, postgres_database
from studies import LR, make_plan, numbers_of, start_worker, states, work

from runner.study import database, storage
from runner.study.plan import Plan
from runner.study.space import Space
from runner.study.study import Study
from runner.study.trials import is_baseline, is_lost
from runner.utils.errors import UserError

SPACE = Space((LR,))
REMOTE_OWNER = ["elsewhere/1234", 17, 1.0]
"""A process of another host."""
Make = Callable[..., Plan]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of an empty database, with `PASSWORD`."""
    with postgres_database() as address:
        yield address


@pytest.fixture
def plan(address: str, request: pytest.FixtureRequest) -> Make:
    """`plan(trials=9)`: a study in the database, named after the test, with some fields changed."""
    return lambda storage=address, **changes: make_plan(
        storage, **{"name": request.node.name, "space": SPACE, "trials": 4, **changes}
    )


def heartbeats(study: Study, address: str) -> int:
    """Trials of a study that have had a heartbeat."""
    import psycopg

    words = (
        "select count(*) from trial_heartbeats join trials using (trial_id)"
        " join studies using (study_id) where study_name = %s"
    )
    with psycopg.connect(address) as connection:
        row = connection.execute(words, (study.plan.name,)).fetchone()
    assert row is not None
    return int(row[0])


def test_two_processes_create_the_tables_and_share_a_study(plan: Make, tmp_path: Path) -> None:
    """The first test: the database is empty."""
    about = plan(trials=10)
    assert numbers_of([start_worker(about, tmp_path) for _ in range(2)]) == list(range(10))
    study = Study(about, tmp_path)
    assert states(study) == ["COMPLETE"] * 10
    assert [trial.number for trial in study.trials() if is_baseline(trial)] == [0]
    assert study.is_finished


def test_hosts_that_create_a_study_at_once_agree(plan: Make, tmp_path: Path) -> None:
    """They share no folder, so no lock, only the database."""
    about = plan(trials=6)
    numbers_of([start_worker(about, tmp_path / name) for name in ("one", "other")])
    study = Study(about, tmp_path)
    assert [trial.number for trial in study.trials() if is_baseline(trial)] == [0]
    assert set(states(study)) == {"COMPLETE"}


def test_a_database_is_a_storage(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    trial = study.ask()
    assert trial is not None
    assert trial.is_baseline
    assert not study.report(1, 0.5)
    study.complete(0.5)
    again = Study(plan(), tmp_path)
    while again.ask() is not None:
        again.complete(0.7)
    assert states(study) == ["COMPLETE"] * 4
    assert study.is_finished
    assert study.best_trial is not None
    assert (study.best_trial.number, study.best_trial.value) == (1, 0.7)
    assert study.trials()[0].intermediate_values == {1: 0.5}
    with pytest.raises(UserError, match="exists with other settings") as caught:
        Study(plan(objective="balanced_accuracy"), tmp_path)
    assert PASSWORD not in str(caught.value)


def test_a_user_who_stops_loses_nothing(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=1), tmp_path)
    study.ask()
    study.interrupt("stopped by SIGINT")
    trial = study.ask()
    assert trial is not None
    assert (trial.number, trial.is_baseline) == (1, True)


def test_a_trial_has_heartbeats(plan: Make, tmp_path: Path, address: str) -> None:
    study = Study(plan(), tmp_path)
    study.record_heartbeat()
    assert heartbeats(study, address) == 0, "there is no trial yet"
    study.ask()
    study.record_heartbeat()
    study.record_heartbeat()
    assert heartbeats(study, address) == 1
    other = Study(plan(), tmp_path)
    with other.lock:
        assert other.requeue_stale_trials() == []
    assert states(other) == ["RUNNING"]


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial is stale a second after its last heartbeat, and half a second after that was noticed."""
    monkeypatch.setattr(storage, "HEARTBEAT_INTERVAL", 1)
    monkeypatch.setattr(storage, "HEARTBEAT_GRACE", 1)
    monkeypatch.setattr(database, "SECOND_LOOK_INTERVALS", 0.5)


def wait_until_requeued(study: Study) -> None:
    """Look for stale trials until no trial is RUNNING."""
    deadline = time.monotonic() + 8
    while "RUNNING" in states(study) and time.monotonic() < deadline:
        with study.lock:
            study.requeue_stale_trials()
        time.sleep(0.1)


def start_remote_trial(about: Plan, folder: Path) -> Study:
    """A worker on another host that starts a trial and is not heard of again."""
    worker = Study(about, folder)
    assert worker.ask() is not None
    worker.annotate(owner=REMOTE_OWNER)
    return worker


@pytest.mark.usefixtures("short_grace")
def test_a_trial_of_a_silent_host_is_tried_again_once(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=2)
    start_remote_trial(about, tmp_path)
    study = Study(about, tmp_path)
    assert states(study) == ["RUNNING"]
    wait_until_requeued(study)
    assert states(study) == ["FAIL", "WAITING"]
    start_remote_trial(about, tmp_path)
    wait_until_requeued(study)
    assert states(study)[:2] == ["FAIL", "FAIL"]
    assert "WAITING" not in states(study), "not a third time"


@pytest.mark.usefixtures("short_grace")
def test_a_trial_lost_with_its_host_does_not_count(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=2)
    start_remote_trial(about, tmp_path)
    study = Study(about, tmp_path)
    wait_until_requeued(study)
    assert is_lost(study.trials()[0])
    assert study.count_trials() == 0
    assert [trial.is_baseline for trial in work(study)] == [True, False]


@pytest.mark.usefixtures("short_grace")
def test_a_trial_without_any_heartbeat_does_not_run_forever(plan: Make, tmp_path: Path) -> None:
    """Its host died between the start of the trial and the first heartbeat, before it stored an owner."""
    about = plan(trials=2)
    Study(about, tmp_path).optuna.ask()
    study = Study(about, tmp_path)
    wait_until_requeued(study)
    assert states(study)[0] == TrialState.FAIL.name


@pytest.mark.usefixtures("short_grace")
def test_a_worker_may_complete_a_trial_that_was_found_stale(plan: Make, tmp_path: Path) -> None:
    """It was only slow: that must not be an error."""
    about = plan(trials=2)
    slow = start_remote_trial(about, tmp_path)
    study = Study(about, tmp_path)
    wait_until_requeued(study)
    assert slow.report(1, 0.5), "it should stop"
    slow.complete(0.5)
    assert not slow._running
    assert states(study)[0] == "FAIL"


@pytest.mark.usefixtures("short_grace")
def test_a_trial_that_is_heard_again_after_an_outage_of_the_database_is_not_lost(
    plan: Make, tmp_path: Path
) -> None:
    """While the database was away, all were silent. The first look notes it; the second one finds a new heartbeat."""
    worker, other = Study(plan(), tmp_path), Study(plan(), tmp_path)
    worker.ask()
    deadline = time.monotonic() + 60
    while database.SUSPECTED not in other.trials()[0].system_attrs:
        assert time.monotonic() < deadline
        assert states(other) == ["RUNNING"]
        other.requeue_stale_trials()
    worker.record_heartbeat()
    other.requeue_stale_trials()
    assert states(other) == ["RUNNING"]


def test_a_dead_worker_of_this_host_is_found_at_once(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    study.ask()
    host, pid, started = study.trials()[0].user_attrs["owner"]
    study.annotate(owner=[host, pid, started - 100])  # a process id that is used again
    other = Study(plan(), tmp_path)
    with other.lock:
        assert other.requeue_stale_trials() == [0]
    assert states(other) == ["FAIL", "WAITING"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (PASSWORD, "wrong-word", "password authentication failed"),
        (f"me:{PASSWORD}", "you:wrong-word", "authentication failed"),
        ("/postgres", "/nosuch", "nosuch"),
    ],
)
def test_what_the_database_refuses_is_an_error_without_passwords(
    plan: Make, tmp_path: Path, address: str, old: str, new: str, problem: str
) -> None:
    scheme, _, rest = address.partition("://")
    with pytest.raises(UserError) as caught:
        Study(plan(f"{scheme}://{rest.replace(old, new)}"), tmp_path)
    assert problem in str(caught.value)
    assert not {PASSWORD, "wrong-word"} & set(str(caught.value).replace("@", ":").split(":"))
    assert "\n" not in str(caught.value)


def test_a_wrong_port_is_an_error(plan: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be reached") as caught:
        Study(plan(f"postgresql://me:{PASSWORD}@127.0.0.1:1/postgres"), tmp_path)
    assert PASSWORD not in str(caught.value)
