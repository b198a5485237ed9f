"""Studies in a real PostgreSQL, which is started for the tests and thrown away."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from runner.config import parser
from runner.study import storage
from runner.study.plan import Plan
from runner.study.space import Dimension, Space
from runner.study.study import Study, is_baseline, is_lost
from runner.utils.errors import UserError

SPACE = Space((Dimension("optim.lr", 1e-4, 0.1, log=True),))
WORK = """
import pickle, sys
from pathlib import Path
from runner.study import Study
study = Study(pickle.loads(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]))
numbers = []
while (asked := study.ask()) is not None:
    study.beat()
    study.report(1, 0.5)
    study.tell("complete", asked.values["optim.lr"])
    numbers.append(asked.number)
print(numbers)
"""


def programs() -> Path | None:
    """The folder of initdb and pg_ctl."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    on_path = shutil.which("pg_ctl")
    places = [*found[::-1], *([Path(on_path).parent] if on_path else [])]
    return next((each for each in places if (each / "initdb").exists() and (each / "pg_ctl").exists()), None)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of an empty database; its password is hush-hush."""
    pytest.importorskip("psycopg")
    bin_ = programs()
    if bin_ is None:
        pytest.skip("PostgreSQL is not installed")
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        import pwd

        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = Path(tempfile.mkdtemp(prefix="runner-pg-", dir="/tmp"))  # a socket's path must be short
    secret = folder / "secret"
    secret.write_text("hush-hush\n")
    if user:
        shutil.chown(folder, "postgres", "postgres")
        shutil.chown(secret, "postgres", "postgres")

    def call(*command: str) -> None:
        done = subprocess.run(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **user
        )
        assert done.returncode == 0, done.stderr

    data = str(folder / "data")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    try:
        call(
            *(str(bin_ / "initdb"), "-D", data, "-U", "me", "-A", "scram-sha-256", "--no-sync"),
            *("--pwfile", str(secret), "-E", "UTF8", "--locale", "C"),
        )
        call(*(str(bin_ / "pg_ctl"), "-D", data, "-l", str(folder / "log"), "-w", "-o", options, "start"))
        try:
            yield f"postgresql://me:hush-hush@127.0.0.1:{port}/postgres"
        finally:
            call(str(bin_ / "pg_ctl"), "-D", data, "-w", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


Make = Callable[..., Plan]


@pytest.fixture
def plan(address: str, request: pytest.FixtureRequest) -> Make:
    """`plan(trials=9)`: a study of the test's name in the database."""
    baseline = parser.parse([])[0]

    def build(**changes: Any) -> Plan:
        fields = {"name": request.node.name, "baseline": baseline, "space": SPACE, "storage": address}
        return Plan(**{**fields, "sampler": "random", "pruner": "none", "trials": 4, **changes})

    return build


def states(study: Study) -> list[str]:
    return [each.state.name for each in study.trials()]


def heartbeats(study: Study, address: str) -> int:
    """Trials of a study that gave a sign of life."""
    import psycopg

    words = (
        "select count(*) from trial_heartbeats join trials using (trial_id)"
        " join studies using (study_id) where study_name = %s"
    )
    with psycopg.connect(address) as connection:
        row = connection.execute(words, (study.plan.name,)).fetchone()
    assert row is not None
    return int(row[0])


def test_two_processes_make_the_tables_and_share_a_study(plan: Make, tmp_path: Path) -> None:
    """The first test: the database is empty."""
    about = plan(trials=10)
    file = tmp_path / "plan.pickle"
    file.write_bytes(pickle.dumps(about))
    words = [sys.executable, "-c", WORK, str(file), str(tmp_path)]
    root = Path(__file__).resolve().parent.parent
    both = [
        subprocess.Popen(words, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [each.communicate(timeout=200) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    assert sorted(number for out, _ in said for number in eval(out)) == list(range(10))
    study = Study(about, tmp_path)
    assert states(study) == ["COMPLETE"] * 10
    assert [each.number for each in study.trials() if is_baseline(each)] == [0]
    assert study.finished


def test_hosts_that_make_one_study_at_once_agree(plan: Make, tmp_path: Path) -> None:
    """They share no folder, so no lock: only the database is between them."""
    about = plan(trials=6)
    file = tmp_path / "plan.pickle"
    file.write_bytes(pickle.dumps(about))
    root = Path(__file__).resolve().parent.parent
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, str(file), str(tmp_path / name)],
            cwd=root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "other")
    ]
    said = [each.communicate(timeout=200) for each in both]
    assert [each.returncode for each in both] == [0, 0], said
    study = Study(about, tmp_path)
    assert [each.number for each in study.trials() if is_baseline(each)] == [0]
    assert set(states(study)) == {"COMPLETE"}


def test_a_study_lives_in_a_database(plan: Make, tmp_path: Path, address: str) -> None:
    study = Study(plan(), tmp_path)
    asked = study.ask()
    assert asked is not None
    assert asked.baseline
    assert not study.report(1, 0.5)
    study.note(reason="none")
    study.tell("complete", 0.5)
    again = Study(plan(), tmp_path)
    while again.ask() is not None:
        again.tell("complete", 0.7)
    assert states(study) == ["COMPLETE"] * 4
    assert study.finished
    assert study.best is not None
    assert (study.best.number, study.best.value) == (1, 0.7)
    assert study.trials()[0].intermediate_values == {1: 0.5}
    with pytest.raises(UserError, match="another one") as caught:
        Study(plan(objective="recall"), tmp_path)
    assert "hush-hush" not in str(caught.value)


def test_a_user_who_stops_loses_nothing(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(trials=1), tmp_path)
    study.ask()
    study.lost("stopped by SIGINT")
    asked = study.ask()
    assert asked is not None
    assert (asked.number, asked.baseline) == (1, True)


def test_a_trial_gives_signs_of_life(plan: Make, tmp_path: Path, address: str) -> None:
    study = Study(plan(), tmp_path)
    study.beat()
    assert heartbeats(study, address) == 0, "there is no trial yet"
    study.ask()
    study.beat()
    study.beat()
    assert heartbeats(study, address) == 1
    other = Study(plan(), tmp_path)
    with other.alone():
        assert other.sweep() == []
    assert states(other) == ["RUNNING"]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial is dead a second after its last sign of life."""
    monkeypatch.setattr(storage, "HEARTBEAT", 1)
    monkeypatch.setattr(storage, "GRACE", 1)


def until_swept(study: Study) -> None:
    """Sweep until no trial is taken to run."""
    deadline = time.monotonic() + 8
    while "RUNNING" in states(study) and time.monotonic() < deadline:
        with study.alone():
            study.sweep()
        time.sleep(0.1)


def abandoned(about: Plan, folder: Path, beats: bool = True) -> None:
    """A worker on another host takes a trial, and is heard of no more."""
    worker = Study(about, folder)
    assert worker.ask() is not None
    worker.note(owner=["elsewhere/1234", 17, 1.0])
    if beats:
        worker.beat()


@pytest.mark.usefixtures("impatient")
def test_a_trial_of_a_silent_host_is_tried_again_once(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=2)
    abandoned(about, tmp_path)
    study = Study(about, tmp_path)
    assert states(study) == ["RUNNING"]
    until_swept(study)
    assert states(study) == ["FAIL", "WAITING"]
    abandoned(about, tmp_path)
    until_swept(study)
    assert states(study)[:2] == ["FAIL", "FAIL"]
    assert "WAITING" not in states(study), "not a third time"


@pytest.mark.usefixtures("impatient")
def test_what_a_silent_host_lost_is_no_trial_and_no_failure(plan: Make, tmp_path: Path) -> None:
    about = plan(trials=2)
    abandoned(about, tmp_path)
    study = Study(about, tmp_path)
    until_swept(study)
    assert is_lost(study.trials()[0])
    assert study.counted() == 0
    done = []
    while (asked := study.ask()) is not None:
        study.tell("complete", 0.5)
        done.append(asked)
    assert [each.baseline for each in done] == [True, False]


@pytest.mark.usefixtures("impatient")
def test_a_host_that_died_before_its_first_sign_of_life(plan: Make, tmp_path: Path) -> None:
    """It has 15 s for that one: until then the trial must not run for ever."""
    about = plan(trials=2)
    abandoned(about, tmp_path, beats=False)
    study = Study(about, tmp_path)
    until_swept(study)
    assert states(study)[0] == TrialState.FAIL.name


@pytest.mark.usefixtures("impatient")
def test_a_trial_that_was_taken_for_dead_can_be_told_of(plan: Make, tmp_path: Path) -> None:
    """Its worker was only held up: it must not fall over it."""
    about = plan(trials=2)
    slow = Study(about, tmp_path)
    slow.ask()
    slow.note(owner=["elsewhere/1234", 17, 1.0])
    slow.beat()
    study = Study(about, tmp_path)
    until_swept(study)
    slow.tell("complete", 0.5)
    assert not slow.running
    assert states(study)[0] == "FAIL"


def test_a_dead_worker_of_this_host_is_seen_at_once(plan: Make, tmp_path: Path) -> None:
    study = Study(plan(), tmp_path)
    study.ask()
    host, pid, started = study.trials()[0].user_attrs["owner"]
    study.note(owner=[host, pid, started - 100])  # a process id that was used again
    other = Study(plan(), tmp_path)
    with other.alone():
        assert other.sweep() == [0]
    assert states(other) == ["FAIL", "WAITING"]


@pytest.mark.parametrize(
    ("was", "is_", "said"),
    [
        ("hush-hush", "wrong-word", "password authentication failed"),
        ("me:hush-hush", "you:wrong-word", "authentication failed"),
        ("/postgres", "/nosuch", "nosuch"),
    ],
)
def test_what_the_database_refuses_is_said(
    plan: Make, tmp_path: Path, address: str, was: str, is_: str, said: str
) -> None:
    head, _, tail = address.partition("://")
    with pytest.raises(UserError) as caught:
        Study(plan(storage=f"{head}://{tail.replace(was, is_)}"), tmp_path)
    assert said in str(caught.value)
    assert not {"hush-hush", "wrong-word"} & set(str(caught.value).replace("@", ":").split(":"))
    assert "\n" not in str(caught.value)


def test_a_wrong_port_is_said(plan: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be reached") as caught:
        Study(plan(storage="postgresql://me:hush-hush@127.0.0.1:1/postgres"), tmp_path)
    assert "hush-hush" not in str(caught.value)
