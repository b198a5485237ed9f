"""A study over several hosts that fail while it runs, and what of it was lost or done twice."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import optuna
import sqlalchemy
from optuna.trial import FrozenTrial, TrialState

from benchmarks.support.hosts import Host
from benchmarks.support.processes import ROOT
from runner.study.database import with_driver
from runner.study.plan import Plan
from runner.study.storage import connect
from runner.study.trials import is_baseline, is_lost

POLL_INTERVAL = 0.1
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass
class HostStudy:
    """A study with one command on each host, which is started again when its host was killed.

    Args:
        storage: PostgreSQL's address.
        name: Of the study.
        hosts: On which its command runs.
        command: The command line of a host.
        environment: The variables of a host.
        folder: For the outputs, a file a host.
        timeout: Seconds that it may take in all.
    """

    storage: str
    name: str
    hosts: Sequence[Host]
    command: Callable[[Host], Sequence[str]]
    environment: Callable[[Host], Mapping[str, str]]
    folder: Path
    timeout: float = 1800.0
    running: dict[str, subprocess.Popen[str]] = field(default_factory=dict, init=False)
    """The commands that run, by host."""

    def run(self, trials: int, faults: Sequence[Callable[[HostStudy], None]]) -> None:
        """Run the study to its end; the faults happen one after the other, spread evenly over its trials.

        Raises RuntimeError if a command fails, or the time is over.
        """
        self._end, left = time.monotonic() + self.timeout, list(faults)
        self._engine = sqlalchemy.create_engine(with_driver(self.storage), poolclass=sqlalchemy.NullPool)
        for host in self.hosts:
            self.start(host)
        while self.running:
            time.sleep(POLL_INTERVAL)
            due = trials * (len(faults) - len(left) + 1) / (len(faults) + 1)
            if left and self._count() >= due:
                left.pop(0)(self)
            for name, process in list(self.running.items()):
                if process.poll() is not None:
                    del self.running[name]
                    self._check(process.returncode == 0, f"{name} ended with status {process.returncode}")
            self._check(time.monotonic() < self._end, f"the study takes more than {self.timeout:.0f} s")
        self._check(not left, f"{len(left)} faults did not happen")

    def start(self, host: Host) -> None:
        """Start the command of a host."""
        with self.output(host).open("a") as output:
            self.running[host.name] = host.start(
                self.command(host),
                self.environment(host),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )

    def restart(self, host: Host) -> None:
        """Start a host again that was killed, and its command."""
        self.running.pop(host.name).wait()
        host.reboot()
        self.start(host)

    def output(self, host: Host) -> Path:
        """The file with what the command of a host has printed."""
        return self.folder / f"{host.name}.txt"

    def busy_hosts(self) -> list[Host]:
        """The hosts whose command runs."""
        return [host for host in self.hosts if host.name in self.running]

    def wait_for_hosts_with_trials(self) -> list[Host]:
        """The hosts that run a trial, as soon as there are any."""
        words = (
            "SELECT value_json FROM trial_user_attributes JOIN trials USING (trial_id) JOIN studies USING (study_id)"
            " WHERE study_name = :name AND state = 'RUNNING' AND key = 'owner'"
        )
        while True:
            with suppress(sqlalchemy.exc.SQLAlchemyError), self._engine.connect() as connection:
                owners = connection.execute(sqlalchemy.text(words), {"name": self.name}).scalars()
                names = {json.loads(owner)[0].partition("/")[0] for owner in owners}
                if hosts := [host for host in self.busy_hosts() if host.name in names]:
                    return hosts
            self._check(time.monotonic() < self._end, "no host runs a trial")
            time.sleep(POLL_INTERVAL)

    def _count(self) -> int:
        """Trials that have finished; 0 if there is no study yet, or the database is away."""
        words = (
            "SELECT count(*) FROM trials JOIN studies USING (study_id)"
            " WHERE study_name = :name AND state = 'COMPLETE'"
        )
        try:
            with self._engine.connect() as connection:
                return int(connection.execute(sqlalchemy.text(words), {"name": self.name}).scalar_one())
        except sqlalchemy.exc.SQLAlchemyError:
            return 0

    def _check(self, good: bool, problem: str) -> None:
        if not good:
            ends = (f"{host.name}: {self.output(host).read_text()[-1500:]}" for host in self.hosts)
            raise RuntimeError("\n".join((problem, *ends)))


def kill_host(choice: random.Random, seconds: float) -> Callable[[HostStudy], None]:
    """A fault: a host that runs a trial is killed, and started again after some seconds."""

    def fault(study: HostStudy) -> None:
        host = choice.choice(study.wait_for_hosts_with_trials())
        host.kill()
        time.sleep(seconds)
        study.restart(host)

    return fault


def cut_off_host(choice: random.Random, seconds: float) -> Callable[[HostStudy], None]:
    """A fault: the cable of a host is cut for some seconds."""

    def fault(study: HostStudy) -> None:
        host = choice.choice(study.busy_hosts())
        host.cut_cable()
        time.sleep(seconds)
        host.mend_cable()

    return fault


def freeze_host(choice: random.Random, seconds: float) -> Callable[[HostStudy], None]:
    """A fault: all processes of a host stop for some seconds."""

    def fault(study: HostStudy) -> None:
        host = choice.choice(study.busy_hosts())
        host.pause()
        time.sleep(seconds)
        host.unpause()

    return fault


def restart_server(
    stop: Callable[[], None], start: Callable[[], None], seconds: float
) -> Callable[[HostStudy], None]:
    """A fault: a server is away for some seconds."""

    def fault(_study: HostStudy) -> None:
        stop()
        time.sleep(seconds)
        start()

    return fault


def formula_study(
    plan: Plan,
    hosts: Sequence[Host],
    environment: Callable[[Host], Mapping[str, str]],
    folder: Path,
    seconds: float,
) -> HostStudy:
    """A study whose trials take some seconds each and are scored by a formula, with quick heartbeats.

    Args:
        plan: A `formula_plan`, in PostgreSQL.
        hosts: A worker runs on each.
        environment: The variables of a host.
        folder: For outputs, and for a folder of each host.
        seconds: Of a trial.
    """

    def command(host: Host) -> list[str]:
        return formula_worker(plan, folder / f"{host.name} mlruns", seconds)

    return HostStudy(plan.storage, plan.name, hosts, command, environment, folder)


def formula_worker(plan: Plan, root: Path, seconds: float) -> list[str]:
    """The command of a worker of such a study, which keeps its files in a folder."""
    script = str(ROOT / "benchmarks" / "support" / "formula_worker.py")
    return [sys.executable, script, plan.storage, str(plan.trials), str(root), str(seconds)]


def measure_host_kills(study: HostStudy, trials: int, kills: int, seed: int) -> dict[str, int]:
    """Run a study to its end while hosts are killed at random, one after the other: `count_damage` of it."""
    choice = random.Random(seed)  # noqa: S311 (which host, not secrets)
    study.run(trials, [kill_host(choice, choice.uniform(0, 2)) for _ in range(kills)])
    return count_damage(stored_trials(study.storage, study.name), trials)


def stored_trials(storage: str, name: str) -> list[FrozenTrial]:
    """The trials of a study in a database."""
    return optuna.load_study(study_name=name, storage=connect(storage)).trials


def count_damage(trials: Sequence[FrozenTrial], wanted: int) -> dict[str, int]:
    """What of a study that has ended was `lost` or `doubled`; `repeated` trials are those of hosts that failed.

    Lost: trials that are missing from those wanted or never ended, and values that died with a host and were not tried
    again. Doubled: trials beyond those wanted, values with two results, and a second baseline.
    """
    counted = [trial for trial in trials if not is_lost(trial)]
    done = [trial for trial in counted if trial.state in FINISHED]
    tried_again = {trial.user_attrs.get("retry") for trial in trials}
    forgotten = [
        trial
        for trial in trials
        if is_lost(trial)
        and "retry" not in trial.user_attrs
        and trial.params
        and trial.number not in tried_again
        and not any(other.params == trial.params for other in done)
    ]
    copies = Counter(str(sorted(trial.params.items())) for trial in done)
    return {
        "lost": max(0, wanted - len(done)) + len(counted) - len(done) + len(forgotten),
        "doubled": max(0, len(counted) - wanted)
        + sum(count - 1 for count in copies.values())
        + max(0, sum(map(is_baseline, done)) - 1),
        "repeated": len(trials) - len(counted),
    }
