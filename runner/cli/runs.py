"""`runner runs`: list runs with their scores and links, delete runs, choose a champion.

./launch.sh runs [--name EXPERIMENT] [--all] [-n 20] [--json]
./launch.sh runs delete RUN…
./launch.sh runs champion RUN
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from runner.cli.options import RUN_HELP, add_tracking_root, positive_integer
from runner.tracking import links
from runner.tracking.champion import make_champion
from runner.tracking.mlflow_server import TrackingServer, tracking_server
from runner.tracking.run_lookup import PAGE, PARENT_TAG, find_run, newest_first, search_runs
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.text import did_you_mean, one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ACTIONS = ("list", "delete", "champion")
SCORES = {"val": "val/best/top1", "test": "test/best/top1"}
"""The metrics that the list shows, by the heading of their columns."""
FEWEST = 100
"""Runs per request, at least: a study may have many runs, which are not listed, between two that are."""


def main(argv: Sequence[str]) -> int:
    """List, delete or choose runs. Raises `UserError` for an unknown run or one that is running."""
    args = parse(argv)
    server = tracking_server(args.tracking)
    server.check_exists(artifacts=False)
    client = server.connect(read_only=args.action == "list")
    terminal = Terminal(stderr=args.json)
    if args.action == "list":
        _list(client, server, args, terminal)
        return 0
    found = [find_run(client, reference) for reference in args.runs]
    if args.action == "champion":
        terminal.line(make_champion(client, found[0].run_id))
        return 0
    for run in found:
        if run.status == "RUNNING":
            raise UserError(f"Run {run.run_id[:8]} ({run.name}) is running; stop it before you delete it.")
    for run in found:
        children = search_runs(client, f"tags.`{PARENT_TAG}` = '{run.run_id}'")
        for run_id in (*(child.info.run_id for child in children), run.run_id):
            client.delete_run(run_id)
        some = "1 run that is" if len(children) == 1 else f"{len(children)} runs that are"
        parts = f" and {some} part of it" if children else ""
        terminal.line(f"deleted run {run.run_id[:8]} ({run.name}){parts}; MLflow can restore it")
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises `UserError`."""
    parser = CommandLineParser(
        prog="runner runs",
        description="List the runs, the newest first, with best validation and test top-1; delete runs; or make the"
        " model of a run the champion of its registered model.",
    )
    add = parser.add_argument
    add("action", nargs="?", default="list", metavar="ACTION", help="list (default), delete or champion")
    add("runs", metavar="RUN", nargs="*", help=f"for delete and champion. {RUN_HELP}")
    add("--name", metavar="EXPERIMENT", help="list the runs of this experiment only")
    add("--all", action="store_true", help="also list the parts of studies, --repeat and cross-validations")
    add("-n", dest="count", type=positive_integer, default=20, help="list this number of runs; default: 20")
    add(
        "--json",
        action="store_true",
        help="list the runs as a JSON array on standard output, and nothing else",
    )
    add_tracking_root(parser)
    args = parser.parse_args(argv)
    if args.action not in ACTIONS:
        raise UserError(
            f"./launch.sh runs has no action {args.action!r}{did_you_mean(args.action, ACTIONS)}; give list, delete or"
            " champion."
        )
    wanted = {"list": "no run", "delete": "a run or more", "champion": "one run"}[args.action]
    count = len(args.runs)
    if {"list": count, "delete": not count, "champion": count != 1}[args.action]:
        raise UserError(f"./launch.sh runs {args.action} takes {wanted}; it was given {count or 'none'}.")
    return args


def _list(client: MlflowClient, server: TrackingServer, args: argparse.Namespace, terminal: Terminal) -> None:
    experiments = {each.experiment_id: each.name for each in client.search_experiments()}
    if args.name is not None and args.name not in experiments.values():
        known = did_you_mean(args.name, list(experiments.values()))
        raise UserError(
            f"There is no experiment {args.name!r}{known}; ./launch.sh runs lists the runs of all."
        )
    searched = [each for each, name in experiments.items() if args.name in (None, name)]
    found = newest_first(client, page=min(max(args.count + 1, FEWEST), PAGE), experiments=searched)
    wanted = (run for run in found if args.all or PARENT_TAG not in run.data.tags)
    runs = list(islice(wanted, args.count))
    rows = [_facts(run, experiments[run.info.experiment_id], server) for run in runs]
    if args.json:
        print(json.dumps(rows))
        return
    if not rows:
        terminal.line("There are no runs yet; ./launch.sh trains one.")
        return
    cells = [
        (
            f"{row['run']:.8}",
            one_line(row["name"] or "", 40),
            one_line(row["experiment"], 30),
            row["status"].lower(),
            row["started"][5:16],
            *("" if row[name] is None else f"{row[name]:.4f}" for name in SCORES),
        )
        for row in rows
    ]
    title = f"Runs, the newest first{' (-n lists more)' if next(wanted, None) else ''}"
    terminal.table(title, ("run", "name", "experiment", "status", "started", *SCORES), cells)
    pages = links.experiment_page(links.pages(server), runs[0].info.experiment_id)
    terminal.line(f"pages{' (after ./launch.sh ui)' if server.embedded else ''}: {pages}")


def _facts(run: Run, experiment: str, server: TrackingServer) -> dict[str, Any]:
    """A run as the list shows it. Times are local, as 2026-05-01 12:00:00."""
    info = run.info
    return {
        "run": info.run_id,
        "name": info.run_name,
        "experiment": experiment,
        "status": info.status,
        "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.start_time / 1000)),
        **{name: run.data.metrics.get(metric) for name, metric in SCORES.items()},
        "link": links.run_page(links.pages(server), info.experiment_id, info.run_id),
    }
