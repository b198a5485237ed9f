"""`runner import-run`: add an exported run to the run records here.

./launch.sh import-run FILE.zip [--no-register] [--tracking.root DIR]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import add_tracking_root
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_import import import_run
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.text import counted


def main(argv: Sequence[str]) -> int:
    """Import a run, unless it is here. Raises `UserError` for a file that cannot be imported."""
    parser = CommandLineParser(
        prog="runner import-run",
        description="Add the run of a file that ./launch.sh export-run wrote to the run records here, or to the MLflow"
        " server that MLFLOW_TRACKING_URI names. It is found by its original id, too. A run that is here already is"
        " not imported again.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="zip file to read")
    parser.add_argument("--no-register", action="store_true", help="only log models, do not register them")
    add_tracking_root(parser)
    options = parser.parse_args(argv)
    server = tracking_server(options.tracking)
    server.check_place()
    terminal = Terminal()
    found = import_run(server, server.connect(), options.file.expanduser(), not options.no_register)
    run, *parts = found.archive.runs
    if found.known:
        differs = (
            f", and {found.known} here, but {run.status} in the file" if found.known != run.status else ""
        )
        terminal.line(
            f"run {run.label} is here already, as {found.run_id[:8]}{differs}: nothing was imported (./launch.sh runs"
            f" delete {found.run_id[:8]} makes room for it)"
        )
        return 0
    more = f" with {counted(len(parts), 'run')} that are part of it" if parts else ""
    terminal.line(f"run {run.label} of {run.experiment} is imported as {found.run_id[:8]}{more}")
    for message in found.messages:
        terminal.line(message)
    return 0
