"""Studies over four hosts that are killed, cut off, frozen, or have wrong clocks, with servers that restart."""

from __future__ import annotations

import inspect
import os
import pickle
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
from clocks import wrong_clock
from commands import ROOT, runner, user_environment
from hosts import network_of_hosts
from optuna.trial import FrozenTrial, TrialState
from pictures import small_experiment
from postgres import postgres_server
from stores import copy_store
from studies import PROCESS, score

from benchmarks.support.formula_worker import HEARTBEAT_GRACE, HEARTBEAT_INTERVAL, formula_plan
from benchmarks.support.host_studies import (
    HostStudy,
    count_damage,
    cut_off_host,
    formula_study,
    formula_worker,
    freeze_host,
    kill_host,
    restart_server,
    stored_trials,
)
from benchmarks.support.hosts import Host
from benchmarks.support.postgres import PostgresServer
from runner.study.database import SECOND_LOOK_INTERVALS
from runner.study.study import Study
from runner.study.trials import is_baseline
from runner.tracking.journal import HEARTBEAT_TIMEOUT

CLOCKS = ("", "+1h", "-1h", "")
"""How wrong the clocks of the workers' hosts are."""
TOO_LONG = HEARTBEAT_GRACE + SECOND_LOOK_INTERVALS * HEARTBEAT_INTERVAL + 3.0
"""Seconds after which a host that is cut off has lost its trial, in a study without training."""
WAIT_IN_FIRST_TRIAL = """
import time
trial = study.ask()
while not Path(sys.argv[3]).exists():
    time.sleep(0.05)
while trial is not None:
    study.complete(score(trial.values))
    trial = study.ask()
"""


@dataclass
class Cluster:
    """Four hosts for workers, and a database on a fifth."""

    workers: list[Host]
    server: Host
    database: PostgresServer
    folder: Path

    def environment(self, host: Any) -> Mapping[str, str]:
        """The variables of a process on a host: with its clock."""
        clock = CLOCKS[self.workers.index(host)]
        shifted = wrong_clock(clock, self.folder / "start") if clock else {}
        return {**user_environment(PYTHONPATH=str(ROOT)), "OMP_NUM_THREADS": "1", **shifted}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    wrong_clock("+1h", tmp_path / "start")
    with (
        network_of_hosts(5, tmp_path / "hosts") as (*workers, server),
        postgres_server(server.address, server.outside) as database,
    ):
        yield Cluster(workers, server, database, tmp_path)


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_when_hosts_and_the_database_fail(
    cluster: Cluster, tmp_path: Path
) -> None:
    """One is killed, one is cut off for longer than it may be silent, one freezes; the database restarts."""
    trials, choice = 30, random.Random(0)
    plan = formula_plan(cluster.database.address, trials)
    faults = [
        restart_server(cluster.database.stop, cluster.database.start, 1.0),
        kill_host(choice, 0.5),
        freeze_host(choice, 2.0),
        kill_host(choice, 0.0),
        cut_off_host(choice, TOO_LONG),
    ]
    formula_study(plan, cluster.workers, cluster.environment, tmp_path, 0.7).run(trials, faults)
    study = Study(plan, tmp_path)
    assert study.is_finished
    damage = count_damage(study.trials(), trials)
    assert (damage["lost"], damage["doubled"]) == (0, 0)
    assert damage["repeated"] >= 2, "of the hosts that were killed"
    assert sum(map(is_baseline, study._complete())) == 1


@pytest.mark.slow
def test_a_journal_file_is_not_shared_by_two_hosts(tmp_path: Path) -> None:
    """The second one is refused before it runs a trial, and does the first no harm."""
    plan = formula_plan(str(tmp_path / "studies.journal"), trials=4)
    own_file, go_on = tmp_path / "plan.pickle", tmp_path / "go on"
    own_file.write_bytes(pickle.dumps(plan))
    code = PROCESS.format(score=inspect.getsource(score), body=WAIT_IN_FIRST_TRIAL)
    environment, root = user_environment(PYTHONPATH=str(ROOT)), str(tmp_path / "mlruns")
    with network_of_hosts(2, tmp_path / "hosts") as (first, second):
        process = first.start(
            [sys.executable, "-c", code, str(own_file), root, str(go_on)], environment, stderr=subprocess.PIPE
        )
        deadline, journal = time.monotonic() + 120, Path(plan.storage)
        while not journal.exists() or b'"owner"' not in journal.read_bytes():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        refused = second.run(formula_worker(plan, Path(root), 0), environment)
        assert refused.returncode == 2
        assert "has a trial running on host1" in refused.stderr
        assert refused.stderr.count("\n") == 1
        go_on.touch()
        assert process.communicate(timeout=120)[1] == ""
    assert [trial.state for trial in Study(plan, tmp_path).trials()] == [TrialState.COMPLETE] * 4


@dataclass
class MlflowOnHost:
    """An MLflow server on a host."""

    host: Host
    folder: Path
    _process: subprocess.Popen[str] | None = None
    port: int = 5000

    @property
    def address(self) -> str:
        return f"http://{self.host.address}:{self.port}"

    def start(self) -> None:
        """Start it, and wait until it answers from its database."""
        words = [
            *(
                sys.executable,
                "-m",
                "mlflow",
                "server",
                "--host",
                self.host.address,
                "--port",
                str(self.port),
            ),
            *("--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}", "--workers", "1"),
            *("--artifacts-destination", str(self.folder / "served"), "--allowed-hosts", "*"),
        ]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.txt").open("a") as log:
            self._process = self.host.start(
                words, user_environment(**quiet), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 200
        while True:
            try:
                urllib.request.urlopen(
                    f"{self.address}/api/2.0/mlflow/experiments/search?max_results=1", timeout=5
                )
                return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "server.txt").read_text()
                time.sleep(0.2)

    def stop(self) -> None:
        """Kill it."""
        assert self._process is not None
        for process in self.host.processes():
            if "mlflow" in " ".join(process.cmdline()):
                process.kill()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_searches_on_four_hosts(
    cluster: Cluster, tmp_path: Path, images: Path, mlflow_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command on each host: all trials once, and in MLflow a run for each, none of them RUNNING."""
    trials, choice = 60, random.Random(1)
    server = MlflowOnHost(cluster.server, copy_store(mlflow_template, tmp_path / "server"))
    server.start()
    space = tmp_path / "space.yaml"
    space.write_text("optim.lr: {low: 1e-4, high: 0.1, log: true}\n")

    def command(host: Any) -> list[str]:
        experiment = small_experiment(images, host.folder / "cache", host.folder / "mlruns")
        study = ("--study", "some", "--space", str(space), "--storage", cluster.database.address)
        what = ("--trials", str(trials), "--sampler", "random", "--pruner", "none", "--confirm", "0")
        return [*runner("search", *experiment), *study, *what, "--features.compile", "false"]

    def environment(host: Any) -> Mapping[str, str]:
        return {**cluster.environment(host), "MLFLOW_TRACKING_URI": server.address}

    faults = [
        restart_server(server.stop, server.start, 3.0),
        restart_server(cluster.database.stop, cluster.database.start, 10.0),
        kill_host(choice, 1.0),
        freeze_host(choice, 20.0),
        kill_host(choice, 5.0),
        cut_off_host(choice, 200.0),  # longer than it may be silent
    ]
    study = HostStudy(
        cluster.database.address, "some", cluster.workers, command, environment, tmp_path, timeout=1400
    )
    study.run(trials, faults)
    damage = count_damage(stored_trials(cluster.database.address, "some"), trials)
    assert (damage["lost"], damage["doubled"]) == (0, 0), damage
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.address)
    close_runs(cluster, environment)
    check_runs(server.address, stored_trials(cluster.database.address, "some"))


def close_runs(cluster: Cluster, environment: Any) -> None:
    """What a host does when it is used the next time: deliver what was left, and close the runs of the dead."""
    time.sleep(HEARTBEAT_TIMEOUT)  # of the last one that was killed
    for host in cluster.workers:
        done = host.run(
            runner("sync", "--tracking.root", str(host.folder / "mlruns")), environment(host), 200
        )
        assert done.returncode == 0, done.stderr


def check_runs(address: str, trials: list[FrozenTrial]) -> None:
    """One parent run and a finished run for each complete trial; others say why they did not finish."""
    client = mlflow.MlflowClient(address)
    (experiment,) = client.search_experiments(filter_string="name = 'small'")
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    assert not [run.data.tags for run in runs if run.info.status == "RUNNING"]
    assert len([run for run in runs if "mlflow.parentRunId" not in run.data.tags]) == 1
    by_trial = {int(run.data.tags["runner.trial"]): run for run in runs if "runner.trial" in run.data.tags}
    for trial in trials:
        if trial.state == TrialState.COMPLETE:
            run = by_trial[trial.number]
            assert run.info.status == "FINISHED"
            assert run.data.metrics["objective"] == trial.value
    assert all(run.data.tags.get("runner.reason") for run in runs if run.info.status != "FINISHED")
