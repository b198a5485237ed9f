"""The command line of studies, and the role that a process has in one."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from runner.config.schema import Experiment
from runner.evaluation.metrics import METRICS
from runner.study.algorithms import PRUNERS, SAMPLERS
from runner.study.plan import Plan
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError

ROLE_VARIABLE = "RUNNER_WORKER"
"""Environment variable: the role that `runner search` gives to a process that it starts."""
MOST_TOGETHER = 64
"""Trials that a worker trains together at most."""
STOP_SIGNAL = signal.SIGURG
"""Asks a worker to stop after its current trial. Nothing else sends it: SIGUSR1 and SIGUSR2 are schedulers'."""


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
    coordinator: int = 0
    """Process id of the `runner search` that started this process; 0: none did."""

    @classmethod
    def from_environment(cls) -> Role:
        """The role of this process."""
        return Role(**json.loads(os.environ.get(ROLE_VARIABLE) or "{}"))

    def to_environment(self) -> dict[str, str]:
        """The variable from which a process reads this role."""
        return {ROLE_VARIABLE: json.dumps(asdict(self))}

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
        epilog="All other options are the experiment's, as in ./launch.sh train: --config FILE, --optim.lr 0.001, …",
        allow_abbrev=False,
    )

    def add(flag: str, default: Any, text: str, shown: str = "", **kind: Any) -> None:
        names = {flag, flag[:2] + flag[2:].replace("-", "_")}
        text = f"{text} (default: {shown or default})"
        parser.add_argument(*sorted(names), default=default, help=text, **kind)

    natural, positive = _whole_number(0), _whole_number(1)
    parser.add_argument("--study", metavar="NAME", required=True, help="name; an existing study is continued")
    add("--space", "around-baseline", "a file, or the name of one in experiments/spaces/", metavar="FILE")
    add("--trials", 50, "total number, over all workers and commands", metavar="N", type=positive)
    add("--workers", 1, "processes, each with a trial of its own", metavar="N", type=positive)
    text = "trials that a worker trains together, if they differ in rates, dropout, smoothing and width only"
    add("--batch", 1, text, metavar="N", type=_whole_number(1, MOST_TOGETHER))
    add("--threads", None, "CPU threads per worker", "equal shares", metavar="N", type=positive)
    add("--storage", None, "journal file or Optuna URL", "studies.journal in tracking.root", metavar="URL")
    add("--objective", "top1", "validation metric to optimize", choices=[*METRICS])
    add("--seeds", 1, "training seeds per trial; its value is their mean", metavar="K", type=positive)
    text = "folds of a trial's cross-validation on training and validation images; its value is their mean"
    add("--folds", None, text, "none", metavar="K", type=_whole_number(2))
    add("--sampler", "tpe", "search algorithm", choices=[*SAMPLERS])
    add("--pruner", "auto", "auto: median; with several seeds or folds wilcoxon", choices=[*PRUNERS])
    add("--sampler-seed", 0, "seed of the sampler", metavar="SEED", type=natural)
    add("--confirm", 5, "new seeds to compare best and baseline on; 0: none", metavar="K", type=natural)
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
    from runner.study.space import find_space, read_space
    from runner.study.storage import default_storage

    baseline, training = parse_experiment(rest, prog="runner search")
    if training.repeat != 1 or training.dry_run:
        raise UserError(
            "--repeat and --dry-run are for ./launch.sh train; studies have --seeds and --confirm."
        )
    _check_folds(baseline, options.folds)
    return Plan(
        name=options.study,
        baseline=baseline,
        space=read_space(find_space(options.space), baseline, checked),
        storage=options.storage or default_storage(Path(baseline.tracking.root).expanduser().resolve()),
        objective=options.objective,
        seeds=options.seeds,
        folds=options.folds,
        trials=options.trials,
        sampler=options.sampler,
        pruner=options.pruner,
        sampler_seed=options.sampler_seed,
    )


def _check_folds(baseline: Experiment, folds: int | None) -> None:
    """Raises `UserError` if an experiment cannot be the baseline of a study with so many folds; None: without folds."""
    if folds is None and baseline.split.is_cross_validation:
        raise UserError(
            "split.folds alone is for ./launch.sh train; in a study, --folds K gives each trial K folds."
        )
    if folds is not None and baseline.split.folds is not None:
        raise UserError(
            "--folds divides the training and validation images by itself; leave out split.folds."
        )
    if folds is not None and baseline.split.by == "count":
        raise UserError(
            "--folds divides all training and validation images; it does not go with split.by=count."
        )


def _whole_number(minimum: int, maximum: float = math.inf) -> Callable[[str], int]:
    wanted = f"of {minimum} or more" if maximum == math.inf else f"from {minimum} to {maximum}"

    def number(word: str) -> int:
        if not word.isdecimal() or not minimum <= int(word) <= maximum:
            raise argparse.ArgumentTypeError(f"{word!r} is not a whole number {wanted}")
        return int(word)

    return number
