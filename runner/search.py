"""Run a study, or one role in it: search the settings of an experiment around its baseline with Optuna.

    runner search --config caltech101-pooled --space around-baseline --study NAME --trials 50 --workers 2 …
    accelerate launch runner/search.py --config … --space … --study NAME …      all processes on each trial together

The same command continues a study that was stopped, and joins one that is running. `runner search` starts this file
as its workers and, when they have finished, as the process that writes the report.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: its folder must not shadow other packages
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

import signal
from collections.abc import Sequence

from runner.study.options import STOP_SIGNAL, Role, make_plan, parse
from runner.utils.errors import UserError
from runner.utils.exit_status import run_script
from runner.utils.processes import exit_with_launcher, exit_with_parent


def main(argv: Sequence[str]) -> int:
    """Do this process's part in the study that the command line describes. Raises `UserError`."""
    role = Role.from_environment()
    if role.coordinator:
        exit_with_parent(role.coordinator)
    else:
        exit_with_launcher()
    stop_requests: list[int] = []
    signal.signal(STOP_SIGNAL, lambda number, _: stop_requests.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [STOP_SIGNAL])  # one that came before the handler arrives now
    options, rest = parse(argv)
    if options.workers > 1 and not role.has_coordinator:
        raise UserError(
            "--workers is for ./launch.sh search; under accelerate launch all processes work on each trial together,"
            " as one worker."
        )
    plan = make_plan(options, rest, checked=role.has_coordinator)

    from runner.study.report import write_report
    from runner.study.session import open_session
    from runner.study.worker import Worker
    from runner.training import devices, hosts, preflight
    from runner.training.error_translation import translate_errors
    from runner.training.setup import SharedSetup
    from runner.utils.console import Terminal
    from runner.utils.cpu_share import pin_to_share
    from runner.utils.long_wait import long_wait

    accelerator = devices.create_accelerator(plan.baseline)
    hosts.check_same_command(plan.baseline)
    if options.batch > 1 and (accelerator.num_processes > 1 or accelerator.device.type != "cpu"):
        raise UserError(
            "--batch trains heads together on the CPU, in workers of one process each; leave it out here."
        )
    if role.is_worker and accelerator.device.type == "cpu":
        pin_to_share(role.worker, role.workers, options.threads)
    with translate_errors(plan.baseline, accelerator), long_wait(), accelerator.local_main_process_first():
        terminal = Terminal(enabled=accelerator.is_main_process)
        manifest = preflight.check(plan.baseline, terminal, plan.objective)
    if not role.has_coordinator:  # which has printed them
        preflight.warn_about_images(manifest, terminal)
    plan = plan.on_images(manifest.digest, len(manifest.classes))
    with open_session(plan, accelerator, role) as session:
        if role.runs_trials:
            shared = SharedSetup.of_trials(plan.baseline, manifest)
            Worker(session, lambda: bool(stop_requests), shared, options.batch).run()
        if role.writes_report:
            write_report(session, options.confirm)
    accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
