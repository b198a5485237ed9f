"""What a trial costs the study's database, and what a run and an epoch cost MLflow."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.support.faulty_proxy import FaultyProxy
from benchmarks.support.outages import mlflow_server
from benchmarks.support.postgres import postgres_server
from benchmarks.support.processes import free_port
from benchmarks.support.requirements import MissingRequirementError
from benchmarks.support.small_run import TRAIN_COMMAND, arguments
from runner.config.parser import parse
from runner.study.plan import Plan
from runner.study.space import Dimension, Space
from runner.study.study import Study

Figures = dict[str, Any]
EPOCHS = 16
"""Of a trial; it reports a value after each."""
TRIALS = 12
"""That are measured, and as many asks beside other running trials."""
RUNNING = 200
"""Trials of other workers that run meanwhile, for what each of them costs."""
SHORT, LONG = 4, 20
"""Epochs of the two runs whose difference is what an epoch costs MLflow."""


class _TimedLock:
    """A study's lock that notes how long it is held, and how many statements and commits that takes."""

    def __init__(self, lock: Any, counts: Counter[str]) -> None:
        self.lock = lock
        self.counts = counts
        self.seconds: list[float] = []
        self.statements: list[int] = []

    def __enter__(self) -> None:
        self.lock.acquire()
        self._start = time.perf_counter(), self.counts["statements"]

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self.seconds.append(time.perf_counter() - self._start[0])
        self.statements.append(self.counts["statements"] - self._start[1])
        self.lock.release()


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Counts the statements and commits of all engines within the block."""
    counts: Counter[str] = Counter()

    def statement(*_: Any) -> None:
        counts["statements"] += 1

    def commit(*_: Any) -> None:
        counts["commits"] += 1

    events = (("before_cursor_execute", statement), ("commit", commit))
    for name, function in events:
        sqlalchemy.event.listen(sqlalchemy.Engine, name, function)
    try:
        yield counts
    finally:
        for name, function in events:
            sqlalchemy.event.remove(sqlalchemy.Engine, name, function)


def measure_study(folder: Path) -> Figures:
    """A trial of `EPOCHS` epochs in a database, and how long an ask holds the lock with and without other trials."""
    try:
        with postgres_server() as server:
            return {"database": "postgresql", **_measure_study(server.address, folder)}
    except MissingRequirementError as error:
        print(f"{error}: the study's database is sqlite", flush=True)
        return {"database": "sqlite", **_measure_study(f"sqlite:///{folder / 'study.db'}", folder)}


def _measure_study(address: str, folder: Path) -> Figures:
    space = Space((Dimension("optim.lr", 1e-4, 0.1, log=True), Dimension("model.dropout", 0.0, 0.8)))
    baseline = parse(["--config", "quickstart", "--train.epochs", str(EPOCHS)])[0]
    plan = Plan("scaling", baseline, space, address, trials=10**6, pruner="none", sampler="random")
    with _counted() as counts:
        study = Study(plan, folder)
        lock = _TimedLock(study.lock, counts)
        study.lock = lock  # type: ignore[assignment]
        _run_trial(study)  # what is loaded or prepared once
        rows, before = _rows(study), counts.copy()
        start = time.perf_counter()
        for _ in range(TRIALS):
            _run_trial(study)
        taken = time.perf_counter() - start
        done = counts - before
        alone, statements = (
            statistics.median(lock.seconds[-TRIALS:]),
            statistics.median(lock.statements[-TRIALS:]),
        )
        rows = _rows(study) - rows
        _add_running(study.optuna, RUNNING)
        for _ in range(TRIALS):
            _run_trial(study)
        beside = statistics.median(lock.seconds[-TRIALS:])
        heartbeat = _heartbeat_seconds(study)
    return {
        "trial_epochs": EPOCHS,
        "trial_database_seconds": taken / TRIALS,
        "trial_statements": round(done["statements"] / TRIALS, 1),
        "trial_commits": round(done["commits"] / TRIALS, 1),
        "trial_rows": round(rows / TRIALS, 1),
        "ask_statements": statements,
        "ask_seconds": alone,
        "ask_seconds_per_running_trial": max(0.0, (beside - alone) / RUNNING),
        "heartbeat_seconds": heartbeat,
    }


def _run_trial(study: Study) -> None:
    """What a worker asks of the study for a trial."""
    trial = study.ask()
    assert trial is not None, "the study has trials left"  # noqa: S101
    study.annotate(trial.number, run="0" * 32)
    for epoch in range(1, EPOCHS + 1):
        study.report(epoch, epoch / 100, trial.number)
    study.why_dropped(trial.number)
    study.annotate(trial.number, scores={"top1": 0.5, "top5": 0.9, "balanced_accuracy": 0.5, "loss": 1.0})
    study.annotate(trial.number, training_seconds=1.0, seconds=2.0)
    study.complete(0.5, trial.number)


def _add_running(study: optuna.Study, count: int) -> None:
    """Add trials of workers on other hosts that run, with what they have stored, in the middle of their epochs."""
    done = next(trial for trial in reversed(study.trials) if trial.state == TrialState.COMPLETE)
    storage: Any = study._storage
    for number in range(count):
        trial: FrozenTrial = create_trial(
            state=TrialState.RUNNING,
            params=done.params,
            distributions=done.distributions,
            user_attrs={"owner": [f"host{number}/0", 1, 0.0], "run": "0" * 32},
            intermediate_values=dict.fromkeys(range(1, EPOCHS // 2 + 1), 0.5),
        )
        trial.datetime_start = datetime.now()
        storage.record_heartbeat(storage.create_new_trial(study._study_id, trial))


def _heartbeat_seconds(study: Study) -> float:
    storage, times = study.storage, []
    trial_id = study.optuna.trials[-1]._trial_id
    for _ in range(TRIALS):
        start = time.perf_counter()
        storage.record_heartbeat(trial_id)  # type: ignore[attr-defined]
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _rows(study: Study) -> int:
    """Rows of all tables."""
    engine = study.storage.engine  # type: ignore[attr-defined]
    tables = sqlalchemy.inspect(engine).get_table_names()
    with engine.connect() as connection:
        counts = (connection.execute(sqlalchemy.text(f'SELECT count(*) FROM "{name}"')) for name in tables)  # noqa: S608
        return sum(count.scalar_one() for count in counts)


def measure_mlflow(folder: Path) -> Figures:
    """Requests to an MLflow server, and bytes of their bodies, of two runs that differ in their number of epochs."""
    port = free_port()
    with mlflow_server(folder, port):
        proxy = FaultyProxy(port)
        try:
            short, long = (_requests_of_run(folder, proxy, epochs) for epochs in (SHORT, LONG))
        finally:
            proxy.shutdown()
    more = LONG - SHORT
    epoch = {name: (long[name] - short[name]) / more for name in short}
    return {
        "mlflow_epoch_requests": round(epoch["requests"], 2),
        "mlflow_epoch_bytes": round(epoch["bytes"]),
        "mlflow_epoch_rows": round(epoch["rows"], 1),
        "mlflow_run_requests": round(short["requests"] - SHORT * epoch["requests"], 1),
        "mlflow_run_bytes": round(short["bytes"] - SHORT * epoch["bytes"]),
        "mlflow_request_seconds": statistics.fmean(proxy.seconds),
    }


def _requests_of_run(folder: Path, proxy: FaultyProxy, epochs: int) -> Counter[str]:
    requests, size = len(proxy.sizes), sum(proxy.sizes)
    settings = {"train.epochs": str(epochs), "schedule.kind": "constant", "tracking.gallery": "0"}
    environment = {**os.environ, "MLFLOW_TRACKING_URI": proxy.url}
    command = [*TRAIN_COMMAND, *arguments(folder, f"run of {epochs}", settings)]
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    import sqlite3

    with closing(sqlite3.connect(folder / "mlruns" / "mlflow.db")) as database:
        rows = database.execute(
            "select count(*) from metrics m join runs r on r.run_uuid = m.run_uuid"
            " join experiments e on e.experiment_id = r.experiment_id where e.name = ?",
            (f"run of {epochs}",),
        ).fetchone()[0]
    return Counter(requests=len(proxy.sizes) - requests, bytes=sum(proxy.sizes) - size, rows=rows)
