"""Search an experiment's settings around their baseline: an Optuna study whose trials are runs in MLflow.

    runner search --config caltech101-pooled --space around-baseline --study NAME --trials 50 --workers 2 …
    accelerate launch runner/search.py --config … --space … --study NAME …      all processes on each trial together

The same command goes on with a study that was stopped, and from another shell it joins one that runs.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: its folder must not shadow other packages
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import os
import signal
from collections.abc import Sequence

from runner.study.options import STOP, WORKER, make_plan, parse
from runner.utils.errors import UserError, guarded, interrupt_on_signals
from runner.utils.processes import follow_launcher


def main(argv: Sequence[str]) -> int:
    """Search as the command line says. Raises `UserError` for what its user can mend."""
    follow_launcher()
    options, rest = parse(argv)
    role = os.environ.get(WORKER, "")
    if not role and options.workers > 1:
        raise UserError(
            "--workers is for ./launch.sh search: under accelerate launch all processes work on each trial together,"
            " and count as one worker."
        )
    plan = make_plan(options, rest, checked=bool(role))

    from runner.study.mlflow_run import Parent, close_parent, open_parent
    from runner.study.report import finish
    from runner.study.study import Study
    from runner.study.worker import Worker, pin
    from runner.tracking.sessions import Records
    from runner.training import devices
    from runner.utils.console import Terminal

    beside = "/" in role
    told: list[int] = []
    signal.signal(STOP, lambda number, _: told.append(number))
    accelerator = devices.start(plan.baseline)
    if beside:
        place, _, count = role.partition("/")
        if accelerator.device.type == "cpu":
            pin(int(place), int(count), options.threads)
    terminal = Terminal(speaks=accelerator.is_main_process)
    records = Records(plan.baseline, accelerator, terminal if not beside else Terminal(speaks=False))
    lead = accelerator.is_main_process
    study = Study(plan, records.server.root) if lead else None
    parent = open_parent(study, records, owns=not role) if study else Parent("", plan.name)
    status = "KILLED"
    try:
        if role != "finish":
            worker = Worker(plan, study, accelerator, records, parent, terminal, lambda: bool(told))
            worker.work()
        if not beside:
            finish(plan, study, options.confirm, accelerator, records, parent, terminal)
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        if study is not None and not role:
            close_parent(study, records, parent, status)
    accelerator.end_training()
    return 0


def _is_first() -> bool:
    return int(os.environ.get("RANK", "0")) == 0


if __name__ == "__main__":
    interrupt_on_signals()
    sys.exit(guarded(lambda: main(sys.argv[1:]), _is_first))
