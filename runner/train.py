"""Train an experiment, and keep everything it does in MLflow.

    accelerate launch runner/train.py                                   the quickstart: no download, a minute
    accelerate launch runner/train.py --config caltech101-pooled --data.root DATA --model.weights FILE
    runner train -n 2 --config caltech101-pooled …                      the same on two processes, checked first
    runner train --config caltech101-pooled … --resume auto             goes on with what was interrupted, if anything

Settings are dotted overrides of the experiment's (`--help` lists them with unit and default). The defaults are
those of an empty experiment file, which is the published report's; without `--config` it is the quickstart's file
that is overridden, and `--print_config` shows what comes of it.
"""

import sys
from pathlib import Path

if not __package__:  # run as a file: its folder must not shadow other packages
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]

from collections.abc import Sequence

from runner.config.parser import parse
from runner.tracking.resume_lookup import with_experiment_of_resumed_run
from runner.utils.exit_status import run_main
from runner.utils.processes import exit_with_launcher
from runner.utils.signals import interrupt_on_signals


def main(argv: Sequence[str]) -> int:
    """Train as the command line says. Raises `UserError` for what its user can mend."""
    exit_with_launcher()
    experiment, options = parse(with_experiment_of_resumed_run(argv), description=__doc__)

    from runner.training import devices, dry_run, resume, seeds
    from runner.utils.console import Terminal

    state = devices.join()
    terminal = Terminal(enabled=state.is_main_process)
    experiment, start = resume.resolve(experiment, options, state, terminal)
    accelerator = devices.start(experiment)
    if options.dry_run:
        dry_run.tell(experiment, options, accelerator, terminal)
    else:
        seeds.train(experiment, options.repeat, accelerator, terminal, start)
    accelerator.end_training()
    return 0


def _is_first() -> bool:
    import os

    return int(os.environ.get("RANK", "0")) == 0


if __name__ == "__main__":
    interrupt_on_signals()
    sys.exit(run_main(lambda: main(sys.argv[1:]), _is_first))
