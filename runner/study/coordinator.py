"""`runner search`: starts the workers of a study, shows their progress, and has the report written."""

from __future__ import annotations

from collections.abc import Sequence

from runner.study.algorithms import check_sampler
from runner.study.options import make_plan, parse
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.output import outlive_readers
from runner.utils.processes import gpu_count
from runner.utils.signals import Interrupted


def search(argv: Sequence[str]) -> int:
    """Run the study that a command line describes. Returns the exit status.

    Raises `UserError` for what its user can fix, and `Interrupted` if it was asked to stop.
    """
    options, rest = parse(argv)
    outlive_readers()
    check_sampler(options.sampler)
    plan = make_plan(options, rest, checked=False)
    gpus = gpu_count()
    if gpus and options.workers > gpus:
        raise UserError(f"--workers is {options.workers}, but each needs a GPU of its own; there are {gpus}.")
    if gpus and options.batch > 1:
        raise UserError("--batch trains heads together on the CPU, and here is a GPU; leave it out.")

    # They import torch, Optuna and MLflow: help and wrong options are answered before.
    from runner.study.live_view import LiveView
    from runner.study.session import close_study_run, open_study_run
    from runner.study.study import Study
    from runner.study.worker_pool import WorkerPool
    from runner.tracking.mlflow_server import check_reachable, tracking_server
    from runner.tracking.recovery import recover_runs
    from runner.tracking.sessions import TrackingSession
    from runner.training.preflight import check, warn_about_images, warn_about_statistics

    check_reachable(tracking_server(plan.baseline.tracking.root).uri)
    terminal = Terminal()
    manifest = check(plan.baseline, terminal, plan.objective)
    warn_about_images(manifest, terminal)
    if plan.folds:
        warn_about_statistics(plan.baseline, terminal)
    plan = plan.on_images(manifest.digest, len(manifest.classes))
    tracking = TrackingSession(plan.baseline, None, terminal)
    study = Study(plan, tracking.server.root)
    with study.lock:
        study.requeue_stale_trials()
    study_run = open_study_run(study, tracking)
    pool = WorkerPool(argv, options.workers, gpus, terminal)
    status = "KILLED"
    try:
        failure = pool.run_trials(study, LiveView(study, terminal))
        if pool.stop_signals:
            terminal.line(f"study {plan.name} stopped; the same command continues it")
            raise Interrupted(pool.stop_signals[0])
        status = "FAILED"
        if failure and pool.error:
            raise UserError(pool.error)
        exit_status = failure or pool.write_report()
        status = "FAILED" if exit_status else "FINISHED"
        return exit_status
    finally:
        assert tracking.client is not None  # noqa: S101 (for types: this process is no launch's)
        recover_runs(tracking.server, tracking.client, terminal)  # the runs of workers that were killed
        close_study_run(study, tracking, study_run, status)
