"""`runner reproduce`: train a run again from what it logged, and compare all metrics.

./launch.sh reproduce RUN [--json] [--data.root PATH] [--model.weights FILE] [--cache FOLDER] [-n PROCESSES]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from runner.cli.launcher import launch, take_processes
from runner.cli.options import JSON_HELP, RUN_HELP, add_moved_images, add_tracking_root, moved_images
from runner.config.parser import parse as parse_settings
from runner.config.validation import check_weights
from runner.evaluation.reproduction import (
    Change,
    Verdict,
    compare_points,
    environment_changes,
    metric_points,
)
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_lookup import RunInfo, find_run
from runner.tracking.sessions import REPRODUCED_RUN
from runner.training.original_run import OriginalRun, label
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal

MOST_ROWS = 20
"""Maximum number of rows in the table of differences; the JSON output has all."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises `UserError`."""
    parser = CommandLineParser(
        prog="runner reproduce",
        description="Train a finished run again, from its logged experiment and on the same images, and compare all"
        " metrics. Exit status 0: the same; 1: different; 2: the run cannot be reproduced.",
    )
    add = parser.add_argument
    add("run", metavar="RUN", help=RUN_HELP)
    add("--json", action="store_true", help=JSON_HELP)
    add_moved_images(parser)
    add("--model.weights", metavar="FILE", help="file of the pretrained weights, if it has moved")
    add("--cache", metavar="FOLDER", help="another cache; an empty one computes all features again")
    add("-n", "--processes", metavar="PROCESSES", help="default: as many as the run used")
    add_tracking_root(parser)
    processes, rest = take_processes(argv)
    args = parser.parse_args(rest)
    args.processes = processes
    return args


def main(argv: Sequence[str]) -> int:
    """Reproduce a run.

    Returns:
        0 if all metrics are the same, 1 if not, the exit status of the training if that failed.

    Raises:
        UserError: The run cannot be reproduced.
    """
    args = parse(argv)
    server = tracking_server(args.tracking)
    server.check_exists()
    client = server.connect()
    terminal = Terminal(stderr=args.json)
    run = find_run(client, args.run)
    with tempfile.TemporaryDirectory(prefix="runner-") as temporary:
        original = OriginalRun(client, run, Path(temporary))
        original.check()
        then = original.environment()
        words = _settings(original, args)
        experiment, _ = parse_settings(words)
        check_weights(experiment.model)
        original.check_weights(experiment)
        original.check_images(experiment, terminal)
        terminal.line(f"Reproducing run {label(run)} of {experiment.name}", style="bold")
        known_changes = environment_changes(then, _current_environment(then))
        _print_changes(known_changes, terminal)
        before = set(original.reproductions())
        with _as_reproduction(run), _stdout_to_stderr() if args.json else nullcontext():
            status = launch("train.py", words, args.processes or int(then.get("processes", 1)))
        if status:
            return status
        new = original.new_reproduction(before)
        verdict = compare_points(metric_points(client, run.run_id), metric_points(client, new.run_id))
        changes = environment_changes(then, original.environment(new))
        _print_changes([change for change in changes if change not in known_changes], terminal)
        if not verdict.identical and experiment.model.weights is not None:
            digests = original.frozen_digest(), original.frozen_digest(new)
            if None not in digests and digests[0] != digests[1]:
                terminal.warn(
                    "the frozen weights differ from the run's; set --model.weights to its weights file"
                )
    if args.json:
        print(json.dumps(_to_json(run, new, verdict, changes)))
    else:
        _print_verdict(original, new, verdict, terminal)
    return 0 if verdict.same else 1


def _settings(original: OriginalRun, args: argparse.Namespace) -> list[str]:
    """The settings that train the run again, as command-line words."""
    experiment_id = original.client.get_run(original.run.run_id).info.experiment_id
    settings = {
        "config": original.download("experiment.yaml"),
        "name": original.client.get_experiment(experiment_id).name,  # it may be renamed
        "tracking.root": args.tracking,
        "tracking.model": "false",  # the original's model is registered already
        "tracking.gallery": "0",  # pictures change no metric
    }
    moved = {name: getattr(args, name) for name in ("model.weights", "cache")}
    settings |= {name: value for name, value in moved.items() if value is not None} | moved_images(args)
    return [f"--{name}={value}" for name, value in settings.items()]


def _current_environment(then: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the current environment before the launch; `then`: the run's environment."""
    packages = {}
    for name in then.get("packages", {}):
        try:
            packages[name] = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):  # not a valid package name
            packages[name] = "not installed"
    return {"python": platform.python_version(), "platform": platform.platform(), "packages": packages}


@contextmanager
def _as_reproduction(run: RunInfo) -> Iterator[None]:
    """Mark runs that are launched in this context as reproductions."""
    os.environ[REPRODUCED_RUN] = f"{run.run_id} {run.name or run.run_id[:8]}"
    try:
        yield
    finally:
        del os.environ[REPRODUCED_RUN]


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect the standard output of this process and its children to standard error."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _print_changes(changes: Sequence[Change], terminal: Terminal) -> None:
    for change in changes:
        terminal.warn(f"{change.what} was {change.then} and is now {change.now}")


def _print_verdict(original: OriginalRun, new: RunInfo, verdict: Verdict, terminal: Terminal) -> None:
    metrics = original.client.get_run(new.run_id).data.metrics
    if metrics.get("system/features/hits") and not metrics.get("system/features/misses"):
        terminal.warn("all features came from the cache; --cache with an empty folder computes them again")
    if not verdict.same:
        count = len(verdict.beyond)
        title = f"Differences, the first {MOST_ROWS} of {count:,}" if count > MOST_ROWS else "Differences"
        rows = [
            (
                difference.metric,
                str(difference.step or "–"),
                _number(difference.original),
                _number(difference.reproduced),
                "–" if difference.relative is None else f"{difference.reproduced - difference.original:+.2e}",  # type: ignore[operator]
            )
            for difference in verdict.beyond[:MOST_ROWS]
        ]
        header = ("metric", "epoch", "original", "reproduced", "difference")
        terminal.table(title, header, rows)
    terminal.line(f"Run {new.run_id} reproduces {label(original.run)}:")
    terminal.line(verdict.sentence() + ".", style="bold")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.9g}"


def _to_json(run: RunInfo, new: RunInfo, verdict: Verdict, changes: Sequence[Change]) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "reproduction": new.run_id,
        "identical": verdict.identical,
        "same": verdict.same,
        "points": verdict.points,
        "largest_relative_difference": verdict.largest,
        "differences": [
            {**asdict(difference), "relative": difference.relative} for difference in verdict.differences
        ],
        "versions": [asdict(change) for change in changes],
    }
