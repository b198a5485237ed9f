"""`runner sync`: deliver the records that wait on this machine, as after an outage of the tracking server.

./launch.sh sync [--tracking.root FOLDER]
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runner.tracking.journal import Journal
from runner.tracking.mlflow_server import Server
from runner.utils.console import Terminal
from runner.utils.errors import Parser, UserError
from runner.utils.redaction import redacted


def main(argv: Sequence[str]) -> int:
    """Deliver what waits. Raises `UserError` where some of it still waits."""
    parser = Parser(
        prog="runner sync",
        description="Deliver to MLflow what earlier runs of this machine recorded and could not deliver, each run to"
        " the store that it belongs to; runs whose process died are closed.",
    )
    parser.add_argument("--tracking.root", dest="tracking", default="mlruns", help="default: mlruns")
    root = Path(parser.parse_args(argv).tracking).expanduser().resolve()
    terminal = Terminal()
    before = waiting(root)
    if not before:
        terminal.line("Nothing waits.")
        return 0
    faults = []
    for uri in sorted({journal.owner.uri for journal in before}):
        try:
            deliver_all(Server(uri, root), terminal)
        except UserError as error:
            faults.append(str(error))
    left = waiting(root)
    count = len(before)
    terminal.line(f"Delivered the records of {count - len(left)} of {count} run{'s' * (count > 1)}.")
    if left:
        runs = ", ".join(journal.owner.run_id[:8] for journal in left)
        where = " ".join(faults) or f"See above for {redacted(left[0].owner.uri)}."
        whose = "run" if len(left) == 1 else f"{len(left)} runs"
        raise UserError(f"The records of {whose} {runs} still wait. {where}")
    return 0


def waiting(root: Path) -> list[Journal]:
    """The journals of dead processes, and of silent ones of other hosts, with something to deliver or no end yet."""
    found = Journal.find(root / "journals")
    return [each for each in found if not each.alive and (each.pending() or not each.ended)]


def deliver_all(server: Server, terminal: Terminal) -> None:
    """Deliver what waits for a store, and close the runs of dead processes.

    Raises `UserError` where the store does not answer.
    """
    from runner.tracking.uploader import recover

    recover(server, server.connect(), terminal)


def close_the_dead(server: Server, terminal: Terminal) -> None:
    """The same after a launch that failed: where it was killed, its run is not to say RUNNING."""
    if any(not each.ended for each in waiting(server.root)):
        try:
            deliver_all(server, terminal)
        except UserError as error:
            terminal.warn(f"{error} ./launch.sh sync delivers what waits later.")
