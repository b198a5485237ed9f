"""`runner train`: check settings, data and tracking server, then hand over to `accelerate launch runner/train.py`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from runner.cli.launcher import launch, take_processes
from runner.config.effective import note_on_idle_settings
from runner.config.parser import given_settings, parse
from runner.tracking.mlflow_server import check_reachable, tracking_server
from runner.tracking.resume_lookup import runs_to_resume, with_experiment_of_resumed_run
from runner.training.preflight import check, check_workers
from runner.utils.cluster import this_task
from runner.utils.console import Terminal
from runner.utils.processes import gpu_count

DESCRIPTION = """\
Train an experiment and log the run to MLflow. Flags override the experiment file. -n N sets the number of processes.
"""


def main(argv: Sequence[str]) -> int:
    """Train as the command line says: the exit status of the launched processes.

    As a task of a scheduler's step it checks only the words: the rest is checked by all tasks together, so that all
    end if one of them refuses.

    Raises `UserError` for what can be refused before anything is launched.
    """
    processes, rest = take_processes(argv)
    experiment, options = parse(with_experiment_of_resumed_run(rest), description=DESCRIPTION)
    if this_task() is not None:
        return launch("train.py", rest, processes)
    gpus = gpu_count()
    runs = len(options.repeated.experiments(experiment))
    check_workers(options.workers, runs, processes or max(1, gpus), on_cpu=not gpus)
    place = tracking_server(experiment.tracking.root)
    if not options.dry_run:
        check_reachable(place.uri)
    if options.resume is not None:
        runs_to_resume(place, experiment, options)
    check(experiment, Terminal())
    if note := note_on_idle_settings(experiment, given_settings(rest)):
        print(f"note: {note}", file=sys.stderr)
    status = launch("train.py", rest, processes)
    if status:
        from runner.cli.sync import close_dead_runs

        close_dead_runs(place, Terminal())
    return status
