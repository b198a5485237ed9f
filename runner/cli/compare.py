"""`runner compare`: compare the settings, metrics, curves and predictions of runs, and test their differences.

./launch.sh compare RUN RUN… | --study NAME [--out FOLDER] [--json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runner.cli.options import JSON_HELP, RUN_HELP, add_tracking_root
from runner.evaluation.comparison import runs as recorded
from runner.evaluation.comparison import tables
from runner.evaluation.comparison.comparison import ComparedRun, Comparison, metric_rows, to_json
from runner.evaluation.comparison.page import write_files
from runner.tracking.mlflow_server import tracking_server
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.hashing import digest
from runner.utils.text import one_line

if TYPE_CHECKING:
    from mlflow import MlflowClient

MOST_IDS = 8
"""Maximum number of run ids in the name of a folder."""


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Raises `UserError`."""
    parser = CommandLineParser(
        prog="runner compare", description="Compare the settings, metrics, curves and predictions of runs."
    )
    add = parser.add_argument
    add("runs", metavar="RUN", nargs="*", help=f"two or more. {RUN_HELP}")
    add("--study", metavar="NAME", help=f"a study's baseline and its {recorded.MOST_TRIALS} best trials")
    add("--out", metavar="FOLDER", help="default: comparisons/IDS under the tracking root")
    add("--json", action="store_true", help=JSON_HELP)
    add_tracking_root(parser)
    args = parser.parse_args(argv)
    if args.study and args.runs:
        raise UserError("Give runs or --study, not both.")
    if not args.study and len(args.runs) < 2:
        raise UserError(
            f"A comparison needs two runs or more, not {len(args.runs) or 'none'}; add runs, or give a study with"
            " --study."
        )
    return args


def main(argv: Sequence[str]) -> int:
    """Compare runs; returns the exit status. Raises `UserError`."""
    args = parse(argv)
    server = tracking_server(args.tracking)
    server.check_exists()
    client = server.connect(read_only=True)
    terminal = Terminal(stderr=args.json)
    selection = (
        recorded.find_trials(client, args.study) if args.study else recorded.find_runs(client, args.runs)
    )
    title = f"Comparison of {selection.description}"
    terminal.line(title)
    runs = [recorded.read_run(client, run) for run in selection.runs]
    predictions = recorded.read_all_predictions(client, runs)
    tests = recorded.paired_tests(runs, predictions)
    notes = recorded.comparison_notes(runs, tests)
    rows, classes = metric_rows(runs, selection.objective), recorded.count_classes(predictions)
    comparison = Comparison(title, runs, rows, tests, notes, classes)
    folder = output_folder(args.out or server.root / "comparisons" / folder_name(runs))
    files = write_files(comparison, folder)
    artifacts = f"comparisons/{folder_name(runs[1:])}"
    logged = _log(client, runs[0], files, artifacts, terminal)
    if args.json:
        print(json.dumps(to_json(comparison, folder, artifacts if logged else None)))
    else:
        print_comparison(comparison, terminal)
    in_mlflow = f", and in MLflow: run {runs[0].short_id}, artifact {artifacts}" if logged else ""
    terminal.line(f"The comparison is {folder / 'comparison.html'}{in_mlflow}.")
    return 0


def folder_name(runs: Sequence[ComparedRun]) -> str:
    """A name for a folder from the ids of runs: always the same, and short enough for file systems."""
    name = "-".join(run.short_id for run in runs[:MOST_IDS])
    rest = runs[MOST_IDS:]
    return f"{name}-and-{len(rest)}-more-{digest([run.run_id for run in rest])[:8]}" if rest else name


def _log(
    client: MlflowClient, run: ComparedRun, files: Sequence[Path], folder: str, terminal: Terminal
) -> bool:
    """Log the files to a run, replacing those of the same comparison; returns whether MLflow accepted them."""
    try:
        for file in files:
            client.log_artifact(run.run_id, str(file), folder)
    except Exception as error:  # every artifact store raises its own errors; the files are on disk
        terminal.warn(
            f"MLflow did not accept the comparison for run {run.short_id} ({one_line(str(error), 200)})"
        )
        return False
    return True


def print_comparison(comparison: Comparison, terminal: Terminal) -> None:
    """Print the tables and the results of the tests."""
    runs, reference, tests = comparison.runs, comparison.reference, comparison.tests
    _, rows = tables.run_table(runs)
    terminal.key_values(
        "Runs",
        [(run_id, f"{name} ({', '.join(cells)} epochs)") for name, run_id, *cells in rows],
    )
    if differing := tables.settings_table(runs)[1]:
        terminal.table("Settings that differ", tables.settings_table(runs)[0], differing)
    terminal.line(tables.same_settings(runs))
    terminal.table("Metrics (last values; * is the best)", *tables.metrics_table(comparison))
    if any(test.result for test in tests):
        terminal.table(tables.mcnemar_title(comparison), *tables.mcnemar_table(tests))
        class_header, classes = tables.class_table(reference, tests[0])
        if classes and len(tests) == 1:
            terminal.table("Classes with the largest differences (images)", class_header, classes)
    terminal.line(tables.mcnemar_explanation(comparison))
    for note in comparison.notes:
        terminal.warn(note)
    if sentence := tables.summary(comparison):
        terminal.line(sentence, style="bold")
