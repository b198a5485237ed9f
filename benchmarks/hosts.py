"""Checks that nothing is lost when hosts of a training or a study fail, and measures what several hosts gain and cost.

    ./launch.sh bench hosts [--kills 20] [--partitions 10] [--requeues 10] [--trials 500] [--only PART …]

The hosts are namespaces inside this machine (support/hosts.py), which share its cores and its files; that needs root.
Trainings are small ones (support/host_runs.py), on the CPU. What this machine cannot do is said, and its figures are
null; so are those of parts that are left out, or that fail.

`hosts`: how many.
`node_kills`, `node_kills_identical`: times that one of two hosts was killed, or frozen, each fourth time, at a random
moment of a training, set-up and end included; and how many of these runs, once resumed, have exactly the metrics of an
undisturbed one and end FINISHED.
`partitions`, `partitions_identical`: the same where its cable was cut. `failures` lists all of them.
`restarted`: how many needed a second command; `continued`: how many of these said that they continue the run. After the
first epoch only runs that were continued count as identical.
`longest_wait_seconds`: from such a failure until the other process had ended.
`requeues`, `requeues_identical`: the same for SLURM jobs on two nodes that were queued again, by `scontrol requeue`
and by preemption in turn.
`trials`, `lost`, `doubled`: of a study with PostgreSQL, with a worker on each host, whose trials are scored by a
formula, while `trial_kills` hosts were killed; `repeated` trials had died with a host.
`scaling_2_hosts`: time of an epoch, nearly all of it computing features, on one host of one core ÷ on two such hosts
with one cache; `scaling_2_cores`: the same for two such hosts that share nothing, which is the machine's limit.
`overhead_loop`, `overhead_run`: by how much two processes on two hosts are slower than on one, in epochs on cached
features, and in whole runs.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.support.formula_worker import formula_plan
from benchmarks.support.host_failures import measure_failures
from benchmarks.support.host_runs import RunFolders
from benchmarks.support.host_speeds import (
    EXTRACTION,
    EXTRACTION_IMAGES,
    LOOP,
    LOOP_IMAGES,
    measure_overhead,
    measure_scaling,
)
from benchmarks.support.host_studies import formula_study, measure_host_kills
from benchmarks.support.hosts import Host, network_of_hosts
from benchmarks.support.postgres import postgres_server
from benchmarks.support.processes import ROOT, user_environment
from benchmarks.support.requeued_jobs import measure_requeues
from benchmarks.support.requirements import MissingRequirementError
from runner.cli.options import positive_integer
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.signals import interrupt_on_signals

HOSTS = 4
OPTIONS = {
    "kills": (20, "hosts that are killed or frozen during a training"),
    "partitions": (10, "hosts that are cut off during a training"),
    "requeues": (10, "SLURM jobs that are queued again"),
    "trials": (500, "trials of the study"),
    "rounds": (3, "rounds of the measurements of speed"),
}
TRIALS_PER_KILL = 25
TRIAL_SECONDS = 0.5
IMAGES, CLASSES = 200, 4
FIGURES: dict[str, tuple[str, ...]] = {
    "failures": (
        *("node_kills", "node_kills_identical", "partitions", "partitions_identical"),
        *("restarted", "continued", "longest_wait_seconds", "failures"),
    ),
    "requeues": ("requeues", "requeues_identical"),
    "trials": ("trials", "trial_kills", "lost", "doubled", "repeated"),
    "scaling": ("scaling_2_hosts", "scaling_2_cores"),
    "overhead": ("overhead_loop", "overhead_run"),
}
"""What each part measures."""
Part = Callable[[], dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    """Measure, and print one JSON object as the last line; the exit status is 1 if a part fails."""
    parser = CommandLineParser(
        prog="runner bench hosts",
        description="Check that nothing is lost when hosts fail, and measure what several hosts gain and cost.",
    )
    for name, (default, meaning) in OPTIONS.items():
        text = f"{meaning}; default: {default}"
        parser.add_argument(f"--{name}", type=positive_integer, default=default, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of moments and hosts; default: 0")
    parser.add_argument(
        "--only", action="append", choices=list(FIGURES), help="measure this part; may be repeated"
    )
    options = parser.parse_args(argv)
    terminal = Terminal()
    interrupt_on_signals()  # else SIGTERM would leave the hosts behind
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hosts-")))
        parts = _Parts(folder, options.seed, terminal, stack)
        measurements: dict[str, Part] = {
            "failures": lambda: parts.failures(options.kills, options.partitions),
            "requeues": lambda: parts.requeues(options.requeues),
            "trials": lambda: parts.trials(options.trials),
            "scaling": lambda: parts.scaling(options.rounds),
            "overhead": lambda: parts.overhead(options.rounds),
        }
        chosen = {name: part for name, part in measurements.items() if name in (options.only or FIGURES)}
        figures, failed = measure(chosen, terminal)
    print(json.dumps({"hosts": HOSTS, **figures, "failed": failed, "seed": options.seed}))
    return 1 if failed else 0


def measure(parts: Mapping[str, Part], terminal: Terminal) -> tuple[dict[str, Any], list[str]]:
    """The figures of all parts, None for those that were not measured; and the names of the parts that failed."""
    figures: dict[str, Any] = {name: None for names in FIGURES.values() for name in names}
    failed = []
    for name, part in parts.items():
        start = time.monotonic()
        try:
            found = part()
        except MissingRequirementError as error:
            terminal.warn(f"{name}: not measured: {error}")
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            failed.append(name)
            terminal.warn(f"{name}: failed: {error}")
        else:
            figures |= found
            shown = ", ".join(f"{key} {value}" for key, value in found.items() if not isinstance(value, list))
            terminal.line(f"{name}: {time.monotonic() - start:.0f} s: {shown}")
    return figures, failed


class _Parts:
    """The parts of the benchmark, which share hosts.

    Args:
        folder: For all files.
        seed: Of moments and hosts.
        terminal: For progress.
        stack: Ends the hosts.
    """

    def __init__(self, folder: Path, seed: int, terminal: Terminal, stack: ExitStack) -> None:
        self._folder, self._seed, self._terminal, self._stack = folder, seed, terminal, stack
        self._started: list[Host] = []

    def _hosts(self) -> list[Host]:
        """All hosts, and one more for servers."""
        if not self._started:
            names = [*(f"host{number + 1}" for number in range(HOSTS)), "database"]
            network = network_of_hosts(len(names), self._folder / "network", names)
            self._started = self._stack.enter_context(network)
        return self._started

    def _runs(self, name: str, images: int, settings: Mapping[str, str] | None = None) -> RunFolders:
        return RunFolders(self._folder / name, images, CLASSES, dict(settings or {}))

    def failures(self, kills: int, partitions: int) -> dict[str, Any]:
        hosts, runs = self._hosts()[:HOSTS], self._runs("failures", IMAGES)
        return measure_failures(hosts, (kills, partitions), self._seed, runs, self._terminal)

    def requeues(self, requeues: int) -> dict[str, Any]:
        runs = self._runs("jobs", IMAGES)
        return measure_requeues(requeues, self._seed, self._folder / "slurm", runs, self._terminal)

    def trials(self, trials: int) -> dict[str, Any]:
        *workers, server = self._hosts()
        kills = trials // TRIALS_PER_KILL
        folder = self._folder / "study"
        folder.mkdir()
        with postgres_server(server.address, server.outside) as database:
            plan = formula_plan(database.address, trials)
            environment = {**user_environment(PYTHONPATH=str(ROOT)), "OMP_NUM_THREADS": "1"}
            study = formula_study(plan, workers, lambda host: environment, folder, TRIAL_SECONDS)
            return {
                "trials": trials,
                "trial_kills": kills,
                **measure_host_kills(study, trials, kills, self._seed),
            }

    def scaling(self, rounds: int) -> dict[str, Any]:
        runs = self._runs("scaling", EXTRACTION_IMAGES, EXTRACTION)
        return measure_scaling(self._hosts(), rounds, runs, self._terminal)

    def overhead(self, rounds: int) -> dict[str, Any]:
        runs = self._runs("overhead", LOOP_IMAGES, LOOP)
        return measure_overhead(self._hosts(), rounds, runs, self._terminal)
