"""`runner slurm`: write a batch script that trains, or works on a study, and submit it to SLURM."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from runner.cli.launcher import take_processes
from runner.cli.slurm_options import CPUS_PER_PROCESS, parse
from runner.cli.slurm_script import Job
from runner.config.schema import Experiment
from runner.utils.atomic_files import output_folder, write_text
from runner.utils.errors import UserError
from runner.utils.paths import PACKAGE
from runner.utils.text import one_line

NO_CLUSTER = ("configuration source", "Unable to contact slurm controller")
"""Parts of what sbatch says where there is no cluster."""


@dataclass(frozen=True)
class Plan:
    """A job, and the experiment that it is about.

    Args:
        job: What to submit.
        experiment: As the words describe it.
        objective: Metric that a study optimizes.
    """

    job: Job
    experiment: Experiment
    objective: str = ""


def main(argv: Sequence[str]) -> int:
    """Submit the job that a command line describes, or print its script.

    Raises `UserError` for what can be refused before the job starts.
    """
    options, words = parse(argv)
    plan = plan_study(options, words) if options.verb == "search" else plan_training(options, words)
    script = plan.job.script(launcher())
    if options.dry_run:
        print(script, end="")
        return 0
    if shutil.which("sbatch") is None:
        raise UserError(
            "There is no sbatch here: SLURM is not installed, or not on the PATH; log in to a machine of the cluster,"
            " or print the script with --dry-run."
        )
    if not options.skip_checks:
        check(plan)
    submit(plan.job, script)
    return 0


def plan_training(options: argparse.Namespace, words: Sequence[str]) -> Plan:
    """The job of a training. Raises `UserError`."""
    from runner.config.parser import parse as parse_experiment
    from runner.tracking.resume_lookup import with_experiment_of_resumed_run
    from runner.training.preflight import check_workers

    if options.array:
        raise UserError(
            "--array starts workers of one study, for search; --repeat K trains an experiment several times in one"
            " job, and other settings are another job."
        )
    processes, rest = take_processes(words)
    if options.gpus_per_node and (processes or 0) > options.gpus_per_node:
        raise UserError(
            f"-n is {processes}, but --gpus-per-node is {options.gpus_per_node}; each process needs a GPU."
        )
    experiment, training = parse_experiment(with_experiment_of_resumed_run(rest), prog="runner slurm train")
    if training.branch:
        raise UserError(
            "--branch would start another run each time the job is queued again; start the branch without SLURM, stop"
            " it, and resume it here with --resume RUN."
        )
    per_node = processes or options.gpus_per_node or 1
    runs = len(training.repeated.experiments(experiment))
    check_workers(training.workers, runs, per_node * options.nodes, on_cpu=not options.gpus_per_node)
    count = ["-n", str(per_node)] if per_node > 1 or processes or options.gpus_per_node else []
    resume = ["--resume", "auto"] if training.resume is None else []
    job = _job(options, [*count, *rest, *resume], experiment, max(per_node, training.workers))
    return Plan(job, experiment)


def plan_study(options: argparse.Namespace, words: Sequence[str]) -> Plan:
    """The job, or the array of jobs, of a study. Raises `UserError`."""
    from runner.study.algorithms import check_sampler
    from runner.study.options import make_plan
    from runner.study.options import parse as parse_study

    if options.nodes > 1:
        raise UserError(
            "--nodes is for train: a trial runs on one node; --array N starts N workers of a study."
        )
    gpus = options.gpus_per_node
    has_workers = any(word.partition("=")[0] == "--workers" for word in words)
    words = [*words, *(["--workers", str(gpus)] if gpus and not has_workers else [])]
    study, rest = parse_study(words)
    check_sampler(study.sampler)
    plan = make_plan(study, rest, checked=False)
    if options.array:
        _check_shared(plan.storage)
    job = _job(options, words, plan.baseline, study.workers)
    return Plan(replace(job, name=options.job_name or study.study), plan.baseline, plan.objective)


def _check_shared(storage: str) -> None:
    """Raises `UserError` unless workers on several hosts can share a study's storage and the tracking store."""
    from runner.study.database import is_postgresql

    if not is_postgresql(storage):
        raise UserError(
            "--array starts workers on several hosts, which cannot share a file; give the study a database with"
            " --storage postgresql://USER@HOST/NAME."
        )
    if not os.environ.get("MLFLOW_TRACKING_URI", "").startswith(("http://", "https://")):
        raise UserError(
            "--array starts workers on several hosts, which cannot share a file of records; start an MLflow server and"
            " set MLFLOW_TRACKING_URI to its address, http://HOST:PORT."
        )


def _job(options: argparse.Namespace, words: Sequence[str], experiment: Experiment, processes: int) -> Job:
    if not experiment.tracking.root.isprintable():  # it would end a comment of the script
        raise UserError(
            f"tracking.root is {experiment.tracking.root!r}; choose a folder without control characters."
        )
    return Job(
        verb=options.verb,
        words=words,
        name=options.job_name or experiment.name,
        root=experiment.tracking.root,
        nodes=options.nodes,
        gpus=options.gpus_per_node,
        cpus=options.cpus_per_node or CPUS_PER_PROCESS * processes,
        time=options.time or "",
        partition=options.partition or "",
        array=options.array or "",
        signal=options.signal,
        further=options.sbatch,
    )


def launcher() -> list[str]:
    """The command that a node runs before the verb."""
    script = PACKAGE.parent / "launch.sh"
    if not script.exists():  # an installed package
        return [sys.executable, "-m", "runner.cli.main"]
    return ["./launch.sh"] if script.parent == Path.cwd() else [str(script)]


def check(plan: Plan) -> None:
    """Check what can be checked before a job starts. Raises `UserError` for what cannot work."""
    from runner.tracking.mlflow_server import check_reachable, tracking_server
    from runner.training.preflight import check as check_experiment
    from runner.utils.console import Terminal

    if plan.job.gpus and version("torch").endswith("+cpu"):
        raise UserError(
            f"{sys.prefix} has PyTorch {version('torch')}, which cannot use a GPU: it was installed on a machine"
            " without one; delete that folder, and let a node with a GPU make it: srun --gpus=1 ./launch.sh --version."
        )
    place = tracking_server(plan.experiment.tracking.root)
    check_reachable(place.uri)
    terminal = Terminal()
    if place.warning:
        terminal.warn(place.warning)
    check_experiment(plan.experiment, terminal, plan.objective)


def submit(job: Job, script: str) -> None:
    """Give a script to SLURM, store it, and print where it and its output are. Raises `UserError` if SLURM refuses."""
    output_folder(job.folder)
    # The variables of an interactive allocation would override what the script asks for.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("SLURM_") or name == "SLURM_CONF"
    }
    done = subprocess.run(
        ["sbatch", "--parsable"],  # noqa: S607 (the user's SLURM, found as a shell finds it)
        input=script,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",  # file names that are not valid UTF-8
    )
    if done.returncode:
        reason = one_line(done.stderr.replace("sbatch: error:", ""), 300)
        if any(words in done.stderr for words in NO_CLUSTER):
            raise UserError(
                f"SLURM cannot be reached from this machine ({reason.rstrip('.')}); run this on a login node of the"
                " cluster, or print the script with --dry-run."
            )
        raise UserError(
            f"SLURM refused the job: {reason.rstrip('.')}; correct that, or ask who runs the cluster."
        )
    number = done.stdout.strip().partition(";")[0]
    path = job.folder / f"{job.label}-{number}.sh"
    write_text(path, script)
    print(f"job {number} is queued; its script: {path}")
    print(f"its output: {job.output(number, '*')}")
