"""`runner ui`: MLflow's web pages, served to this machine alone.

./launch.sh ui [--port 5000] [--tracking.root FOLDER]
"""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import closing

from runner.cli.options import add_tracking_root
from runner.tracking.links import UI_PORT, experiment_page
from runner.tracking.mlflow_server import TrackingServer, configure_mlflow, tracking_server
from runner.tracking.moved_records import is_read_only
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.file_systems import sqlite_path
from runner.utils.redaction import redact

HOST = "127.0.0.1"


def main(argv: Sequence[str]) -> int:
    """Become an MLflow server that runs until stopped.

    Raises `UserError` if the port is taken, the store is not embedded, or there are no records.
    """
    parser = CommandLineParser(
        prog="runner ui", description="Serve MLflow's web pages of the runs in mlruns/."
    )
    parser.add_argument("--port", type=int, default=UI_PORT, help=f"default: {UI_PORT}")
    add_tracking_root(parser)
    options = parser.parse_args(argv)
    if not 0 < options.port < 65536:
        raise UserError(f"--port {options.port} is not a port; give one from 1 to 65535.")
    server = tracking_server(options.tracking)
    if not server.embedded:
        raise UserError(f"MLFLOW_TRACKING_URI is set: the pages are at {redact(server.uri)}.")
    server.check_exists(artifacts=False)
    if is_read_only(server.root):
        raise UserError(
            f"MLflow's pages need records that can be written, and those in {server.root} are read-only: copy the"
            " folder (cp -r), and give the copy with --tracking.root; ./launch.sh runs and ./launch.sh predict can"
            " read it as it is."
        )
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, options.port))
        except OSError:
            raise UserError(f"Port {options.port} of {HOST} is taken; give another with --port.") from None
    page = experiment_page(f"http://{HOST}:{options.port}", _newest_experiment(server))
    print(f"MLflow opens in some seconds; Ctrl-C ends it: {page}", flush=True)
    configure_mlflow()
    # Its eight job processes would start after the first answer and slow the server down for up to a minute.
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of libraries that the server imports
    arguments = [
        *("--backend-store-uri", server.uri, "--default-artifact-root", (server.root / "artifacts").as_uri()),
        *("--host", HOST, "--port", str(options.port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]
    command = [sys.executable, "-m", "mlflow", "server", *arguments]
    os.execv(sys.executable, command)  # noqa: S606 (our own words, and no shell)


def _newest_experiment(server: TrackingServer) -> str:
    """The id of the experiment of the newest run; read without MLflow, whose import would delay the server."""
    query = "SELECT experiment_id FROM runs ORDER BY start_time DESC LIMIT 1"
    try:
        with closing(sqlite3.connect(sqlite_path(server.uri))) as database:
            found = database.execute(query).fetchone()
    except sqlite3.Error:  # the server says what is wrong with the database
        found = None
    return str(found[0]) if found else "0"
