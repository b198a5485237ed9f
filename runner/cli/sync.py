"""`runner sync`: deliver the records that wait on this machine, as after an outage of the tracking server.

./launch.sh sync [--tracking.root FOLDER]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.cli.options import add_tracking_root
from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import TrackingServer
from runner.tracking.moved_records import adopt_records
from runner.tracking.recovery import recover_runs
from runner.utils.command_line import CommandLineParser
from runner.utils.console import Terminal
from runner.utils.errors import UserError
from runner.utils.file_systems import is_sqlite, sqlite_path
from runner.utils.redaction import redact


def main(argv: Sequence[str]) -> int:
    """Deliver all pending records. Raises `UserError` if some could not be delivered."""
    parser = CommandLineParser(
        prog="runner sync",
        description="Deliver to MLflow what earlier runs of this machine logged and could not deliver, each run to the"
        " store that it belongs to, and close runs whose process died.",
    )
    add_tracking_root(parser)
    root = Path(parser.parse_args(argv).tracking).expanduser().resolve()
    terminal = Terminal()
    adopt_records(root)
    before = undelivered(root)
    if not before:
        terminal.line("Nothing to deliver.")
        return 0
    errors = []
    for uri in sorted({journal.owner.uri for journal in before}):
        try:
            if is_sqlite(uri) and not sqlite_path(uri).exists():  # connecting would create it
                raise UserError(f"There is no database {sqlite_path(uri)} any more; move it back.")
            server = TrackingServer(uri, root)
            recover_runs(server, server.connect(), terminal)
        except UserError as error:
            errors.append(str(error))
    left = undelivered(root)
    count = len(before)
    terminal.line(f"Delivered the records of {count - len(left)} of {count} run{'s' * (count > 1)}.")
    if left:
        runs = ", ".join(journal.owner.run_id[:8] for journal in left)
        details = " ".join(errors) or f"The reason is above; the store is {redact(left[0].owner.uri)}."
        label = "run" if len(left) == 1 else f"{len(left)} runs"
        raise UserError(f"The records of {label} {runs} are still not delivered. {details}")
    return 0


def undelivered(root: Path) -> list[Journal]:
    """Journals of dead processes with events to deliver, or without the run's end."""
    journals = Journal.find_all(root / "journals")
    return [journal for journal in journals if not journal.alive and (journal.pending() or not journal.ended)]


def close_dead_runs(server: TrackingServer, terminal: Terminal) -> None:
    """After a failed launch: close its run if its process was killed. Warns if the store does not answer."""
    if any(not journal.ended for journal in undelivered(server.root)):
        try:
            recover_runs(server, server.connect(), terminal)
        except UserError as error:
            terminal.warn(f"{error} ./launch.sh sync delivers the records later.")
