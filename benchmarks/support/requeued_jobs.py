"""Trainings in SLURM jobs that are queued again while they run: do they end as if undisturbed?"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.support.host_runs import RunFolder, RunFolders
from benchmarks.support.phases import PHASES, TRAINING, record_timeline
from benchmarks.support.processes import ROOT, user_environment
from benchmarks.support.requirements import MissingRequirementError
from benchmarks.support.slurm_cluster import SlurmCluster, slurm_cluster
from runner.utils.console import Terminal

NODES = 2
JOB_TIMEOUT = 400.0
"""Seconds that a job may take to its next state on a busy machine."""
ATTEMPTS = 6
"""How often a job is repeated that ended before it was queued again."""
WAYS = ("scontrol requeue", "preemption")


class _Job:
    """A job that trains on all nodes."""

    def __init__(self, cluster: SlurmCluster, run: RunFolder) -> None:
        self.cluster, self.run = cluster, run
        words = [sys.executable, "-m", "runner.cli.main", "slurm", "train", *run.words, "--nodes", str(NODES)]
        done = cluster.run(words, user_environment(PYTHONPATH=str(ROOT)), run.path)
        found = re.match(r"job (\d+) is queued", done.stdout)
        if done.returncode or not found:
            raise RuntimeError(f"the job was not submitted: {done.stderr}")
        self.id = found[1]
        cluster.wait_for(self.id, "RUNNING", "COMPLETED", timeout=JOB_TIMEOUT)

    def text(self) -> str:
        """What it has printed."""
        return "".join(path.read_text() for path in (self.run.path / "mlruns" / "slurm").glob("*.out"))

    def is_running(self) -> bool:
        """Whether it runs."""
        return self.cluster.job(self.id)["JobState"] == "RUNNING"

    def queue_again(self, way: str) -> None:
        """Let SLURM stop it and queue it again, and wait for its end. Raises RuntimeError if it does not come."""
        if way == "preemption":
            words = ("--partition=high", f"--nodes={NODES}", "--exclusive")
            urgent = self.cluster.sbatch("#!/bin/sh\nsleep 1\n", *words)
            self.cluster.wait_for(urgent, "COMPLETED", timeout=JOB_TIMEOUT)
        else:
            self.cluster.scontrol("requeue", self.id)
        self.finish(restarts=1)

    def finish(self, restarts: int = 0) -> None:
        """Wait until it has ended well."""
        self.cluster.wait_for(self.id, "COMPLETED", restarts=restarts, timeout=JOB_TIMEOUT)


def measure_requeues(
    requeues: int, seed: int, folder: Path, folders: RunFolders, terminal: Terminal
) -> dict[str, Any]:
    """Queue jobs again, in turn by `WAYS`; count those that end as if undisturbed.

    Raises `MissingRequirementError` where there is no SLURM.
    """
    if not (ROOT / ".venv" / ".ready").exists():
        raise MissingRequirementError(
            "the jobs run launch.sh, whose environment is not ready (./launch.sh makes it)"
        )
    choice = random.Random(seed)  # noqa: S311 (moments, not secrets)
    with slurm_cluster(NODES, folder) as cluster:
        whole = _Job(cluster, folders.new("undisturbed job"))
        timeline = record_timeline(whole.text, whole.is_running)
        whole.finish()
        ((_, expected),) = whole.run.runs()
        terminal.line(f"undisturbed job: {timeline}")
        records = []
        for number in range(requeues):
            way = WAYS[number % len(WAYS)]
            for attempt in range(ATTEMPTS):
                job = _Job(cluster, folders.new(f"requeue-{number}-{attempt}"))
                moment = timeline.moment(number, choice)
                if moment.wait(job.text, job.is_running):
                    break
                job.finish()
            else:
                raise RuntimeError(f"{ATTEMPTS} jobs ended before they were queued again")
            problem = ""
            try:
                job.queue_again(way)
            except RuntimeError as error:
                problem = str(error)
            same = not problem and job.run.finished_as(expected, moment.phase >= TRAINING)
            phase = PHASES[moment.phase]
            records.append({"number": number, "way": way, "phase": phase, "identical": same})
            terminal.line(f"{number}: {way} in {phase}: {'identical' if same else 'NOT IDENTICAL'} {problem}")
    return {
        "requeues": requeues,
        "requeues_identical": sum(bool(each["identical"]) for each in records),
        "requeue_records": records,
    }
