"""Train an experiment, and log the run to MLflow.

    accelerate launch runner/train.py                                   the quickstart: no download, a minute
    runner train path/to/images                                         your own images (docs/data.md)
    accelerate launch runner/train.py --config caltech101-pooled --data.root DATA --model.weights FILE
    runner train -n 2 --config caltech101-pooled …                      the same, checked first, on two processes
    runner train --config caltech101-pooled … --resume auto             resumes an interrupted run, if any

Settings are dotted options that override the experiment file. `--help` lists them with the values that the file gives
them, and `--print_config` shows the result. Without `--config` the experiment is experiments/folder.yaml if the command
names images (path/to/images, --data.root, --data.kind), else experiments/quickstart.yaml.
"""

import signal
import sys
from pathlib import Path

if not __package__:  # run as a file: its folder must not shadow other packages
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from collections.abc import Sequence
from dataclasses import replace

from runner.config.parser import parse
from runner.tracking.resume_lookup import AUTO, with_experiment_of_resumed_run
from runner.utils.exit_status import run_script
from runner.utils.processes import exit_with_launcher
from runner.utils.signals import handle_signals


def main(argv: Sequence[str]) -> int:
    """Train what the command line says, on every process of a launch; returns the exit status. Raises `UserError`."""
    exit_with_launcher()
    experiment, options = parse(with_experiment_of_resumed_run(argv), description=__doc__)

    from runner.training import devices, dry_run, hosts, repeated, resume
    from runner.utils.console import Terminal

    state = devices.init_processes()
    hosts.check_same_command(experiment, options)
    if options.resume is None and hosts.is_restarted():
        options = replace(options, resume=AUTO)
    terminal = Terminal(enabled=state.is_main_process)
    experiment, start = resume.resolve(experiment, options, state, terminal)
    accelerator = devices.create_accelerator(experiment)
    if options.dry_run:
        dry_run.print_estimate(experiment, options.repeated, accelerator, terminal)
    else:
        repeated.train(experiment, options.repeated, accelerator, terminal, start, options.workers)
    with handle_signals(signal.SIG_IGN):  # a scheduler would start again what is finished
        accelerator.end_training()
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))
