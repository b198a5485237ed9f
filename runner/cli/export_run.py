"""`runner export-run`: write a run with all that belongs to it to one file.

./launch.sh export-run RUN FILE.zip [--tracking.root DIR]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import RUN_HELP, add_tracking_root
from runner.tracking.mlflow_server import tracking_server
from runner.tracking.run_export import export_run
from runner.tracking.run_lookup import find_run
from runner.utils.atomic_files import output_folder
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal, format_bytes
from runner.utils.errors import UserError
from runner.utils.text import counted


def main(argv: Sequence[str]) -> int:
    """Export a run. Raises `UserError` for a file that exists, an unknown run, or one that has not ended."""
    parser = CommandLineParser(
        prog="runner export-run",
        description="Write a run to a file that ./launch.sh import-run reads: its settings, tags, every point of its"
        " metrics, data sets, artifacts and model, and the runs that are part of it.",
    )
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("file", metavar="FILE", type=Path, help="zip file to write; it must not exist")
    add_tracking_root(parser)
    options = parser.parse_args(argv)
    path = options.file.expanduser()
    if path.is_dir():
        raise UserError(f"{path} is a folder; give a file such as {path / 'run.zip'}.")
    if path.exists():
        raise UserError(f"{path} exists already; name another file or remove it.")
    server = tracking_server(options.tracking)
    server.check_exists()
    path = output_folder(path.parent) / path.name
    client = server.connect(read_only=True)
    terminal = Terminal()
    content = export_run(server, client, find_run(client, options.run), path)
    run, *parts = content.runs
    more = f" and {counted(len(parts), 'run')} that are part of it" if parts else ""
    points = sum(len(history) for each in content.runs for history in each.metrics.values())
    files = sum(len(each.all_files) for each in content.runs)
    terminal.line(
        f"{path} ({format_bytes(path.stat().st_size)}): run {run.label}{more}, {counted(points, 'metric value')},"
        f" {counted(files, 'file')}"
    )
    if run.status != "FINISHED":
        terminal.warn(
            f"run {run.label} is {run.status}: it is exported with what it logged, and can be resumed only here"
        )
    return 0
