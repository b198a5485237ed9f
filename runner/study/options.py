"""The command line of studies, and the role that a process has in one."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.evaluation.metrics import METRICS
from runner.study.plan import Plan
from runner.study.pruners import PRUNERS
from runner.study.samplers import SAMPLERS
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError

ROLE_VARIABLE = "RUNNER_WORKER"
"""Environment variable: the role that `runner search` gives to a process that it starts."""
STOP_SIGNAL = signal.SIGUSR1
"""Asks a worker to stop after its current trial."""
_REPORTER = "report"


@dataclass(frozen=True)
class Role:
    """What a process does in a study.

    `runner search` starts workers, and when they have finished a reporter. Without it, under `accelerate launch`, the
    processes of a launch are worker and reporter in one.
    """

    runs_trials: bool = True
    writes_report: bool = True
    worker: int = 0
    """Index of the worker among the workers of its coordinator."""
    workers: int = 1

    @classmethod
    def from_environment(cls) -> Role:
        """The role of this process."""
        text = os.environ.get(ROLE_VARIABLE)
        if not text:
            return Role()
        if text == _REPORTER:
            return Role(runs_trials=False)
        worker, _, workers = text.partition("/")
        return Role(writes_report=False, worker=int(worker), workers=int(workers))

    def to_environment(self) -> dict[str, str]:
        """The variable from which a process reads this role."""
        return {ROLE_VARIABLE: f"{self.worker}/{self.workers}" if self.runs_trials else _REPORTER}

    @property
    def is_worker(self) -> bool:
        """Whether it is one of the workers of a coordinator."""
        return not self.writes_report

    @property
    def has_coordinator(self) -> bool:
        """Whether `runner search` started this process, and owns the study's run."""
        return self.is_worker or not self.runs_trials


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of the study, and the remaining words, which belong to the experiment. Raises `UserError`."""
    parser = CommandLineParser(
        prog="runner search",
        description="Search the settings of an experiment around its baseline.",
        epilog="All other options are the experiment's, as in runner train: --config FILE, --optim.lr 0.001, …",
        allow_abbrev=False,
    )
    add, positive, natural = parser.add_argument, _at_least(1), _at_least(0)
    add("--study", metavar="NAME", required=True, help="name of the study; an existing one is continued")
    add(
        "--space",
        metavar="FILE",
        default="around-baseline",
        help="search space: a file, or a name in experiments/spaces/ (default: around-baseline)",
    )
    add(
        "--trials",
        metavar="N",
        type=positive,
        default=50,
        help="total number, over all workers and commands (default: 50)",
    )
    add(
        "--workers",
        metavar="N",
        type=positive,
        default=1,
        help="processes, each with a trial of its own (default: 1)",
    )
    add(
        "--threads",
        metavar="N",
        type=positive,
        help="CPU threads per worker (default: an equal share of the cores)",
    )
    add(
        "--storage",
        metavar="URL",
        help="journal file or Optuna URL (default: studies.journal in tracking.root)",
    )
    add(
        "--objective",
        choices=[*METRICS],
        default="top1",
        help="validation metric to optimize (default: top1)",
    )
    add(
        "--seeds",
        metavar="K",
        type=positive,
        default=1,
        help="training seeds per trial; its value is their mean (default: 1)",
    )
    add("--sampler", choices=[*SAMPLERS], default="tpe", help="search algorithm (default: tpe)")
    add(
        "--pruner",
        choices=[*PRUNERS],
        default="auto",
        help="auto (default): median; with several seeds wilcoxon",
    )
    add(
        "--sampler-seed",
        "--sampler_seed",
        metavar="SEED",
        type=natural,
        default=0,
        help="seed of the sampler (default: 0)",
    )
    add(
        "--confirm",
        metavar="K",
        type=natural,
        default=5,
        help="new seeds to compare best and baseline; 0: none (default: 5)",
    )
    options, rest = parser.parse_known_args(list(argv))
    if not options.study.strip() or "/" in options.study or options.study.startswith("."):
        raise UserError(f"--study must be a name without a slash or a leading dot; it is {options.study!r}.")
    return options, rest


def make_plan(options: argparse.Namespace, rest: Sequence[str], checked: bool) -> Plan:
    """The study that a command line describes. Raises `UserError`.

    Args:
        options: The study's options.
        rest: The experiment's options.
        checked: Whether a coordinator has validated the values of the search space already.
    """
    from runner.config.parser import parse as parse_experiment
    from runner.study.space_file import find_space, read_space
    from runner.study.storage import default_storage

    baseline, training = parse_experiment(rest, prog="runner search")
    if training.repeat != 1 or training.dry_run:
        raise UserError(
            "--repeat and --dry-run are for runner train; studies have --seeds and --confirm instead."
        )
    return Plan(
        name=options.study,
        baseline=baseline,
        space=read_space(find_space(options.space), baseline, checked),
        storage=options.storage or default_storage(Path(baseline.tracking.root).expanduser().resolve()),
        objective=options.objective,
        seeds=options.seeds,
        trials=options.trials,
        sampler=options.sampler,
        pruner=options.pruner,
        sampler_seed=options.sampler_seed,
    )


def _at_least(minimum: int) -> Callable[[str], int]:
    def number(word: str) -> int:
        if not word.isdecimal() or int(word) < minimum:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number of {minimum} or more")
        return int(word)

    return number
