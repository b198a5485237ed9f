"""TODO."""

import argparse
import signal
from collections.abc import Sequence
from pathlib import Path

from runner.evaluation.metrics import METRICS
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError

WORKER = "RUNNER_WORKER"
"""Tells a process what it is in a study: `2/4`, a worker beside others, or `finish`, what comes after them."""


STOP = signal.SIGUSR1
"""Tells a worker to end behind its trial."""


SAMPLERS = ("tpe", "gp", "cmaes", "random", "grid")


PRUNERS = ("auto", "median", "hyperband", "wilcoxon", "none")


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The study's options, and the experiment's, which are left. Raises `UserError`."""
    parser = CommandLineParser(
        prog="runner search",
        description=(__doc__ or "").split("\n")[0],
        epilog="All other words are the experiment's, as in runner train: --config FILE, --optim.lr 0.001, …",
        allow_abbrev=False,
    )
    number = _at_least(1)
    add = parser.add_argument
    add("--study", metavar="NAME", required=True, help="name of the study; the same name goes on with it")
    add(
        "--space",
        metavar="FILE",
        default="around-baseline",
        help="search space: a file, or one of experiments/spaces/",
    )
    add("--trials", type=number, default=50, help="trials in total, over all workers and times (default: 50)")
    add("--workers", type=number, default=1, help="processes that run a trial each (default: 1)")
    add("--threads", type=number, help="threads of each worker; default: its share of the cores")
    add(
        "--storage",
        metavar="URL",
        help="journal file or Optuna URL; default: studies.journal in tracking.root",
    )
    add("--objective", choices=tuple(METRICS), default="top1", help="validation score to go by (default: top1)")
    add("--fits", type=number, default=1, help="fit seeds that a trial's value is the mean of (default: 1)")
    add("--sampler", choices=SAMPLERS, default="tpe", help="default: tpe")
    add("--pruner", choices=PRUNERS, default="auto", help="auto: median; with several fits wilcoxon")
    add("--sampler-seed", type=_at_least(0), default=0, help="seed of the sampler (default: 0)")
    add(
        "--confirm",
        type=_at_least(0),
        default=5,
        help="fit seeds to compare best and baseline on (default: 5)",
    )
    options, rest = parser.parse_known_args(list(argv))
    if not options.study.strip() or "/" in options.study or options.study.startswith("."):
        raise UserError(f"--study takes a name without a slash or a leading dot; it is {options.study!r}.")
    return options, rest


def _at_least(least: int):  # type: ignore[no-untyped-def]
    def number(word: str) -> int:
        if not word.isdigit() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number of {least} or more")
        return int(word)

    return number


def make_plan(options: argparse.Namespace, rest: Sequence[str], checked: bool):  # type: ignore[no-untyped-def]
    """The study that a command line means. Raises `UserError`.

    Args:
        options: The study's.
        rest: The experiment's.
        checked: The values of the space have been tried on the experiment's types before.
    """
    from runner.config.parser import parse as parse_experiment
    from runner.study import space, storage
    from runner.study.plan import Plan

    experiment, training = parse_experiment(rest, prog="runner search")
    if training.repeat != 1 or training.dry_run:
        raise UserError("--repeat and --dry-run are for runner train; a study has --fits and --confirm.")
    root = Path(experiment.tracking.root).expanduser().resolve()
    return Plan(
        name=options.study,
        baseline=experiment,
        space=space.read(space.find_space(options.space), experiment, checked),
        storage=options.storage or storage.default(root),
        objective=options.objective,
        fits=options.fits,
        trials=options.trials,
        sampler=options.sampler,
        pruner=options.pruner,
        seed=options.sampler_seed,
    )
