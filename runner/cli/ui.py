"""MLflow's own pages over the records, on this machine alone."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from runner.tracking.mlflow_server import configure_mlflow, tracking_server
from runner.utils.command_line import CommandLineParser
from runner.utils.errors import UserError
from runner.utils.redaction import redact

HOST = "127.0.0.1"


def main(argv: Sequence[str]) -> int:
    """Serve until stopped. Raises `UserError` where the port is taken, or there is nothing to serve."""
    parser = CommandLineParser(prog="runner ui", description="MLflow's pages over mlruns/.")
    parser.add_argument("--port", type=int, default=5000, help="default: 5000")
    parser.add_argument("--tracking.root", dest="tracking", default="mlruns", help="default: mlruns")
    asked = parser.parse_args(argv)
    if not 0 < asked.port < 65536:
        raise UserError(f"--port {asked.port} is no port; give one from 1 to 65535.")
    store = tracking_server(asked.tracking)
    if not store.embedded:
        raise UserError(f"MLFLOW_TRACKING_URI is set: the pages are at {redact(store.uri)}.")
    store.check_exists()
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, asked.port))
        except OSError:
            raise UserError(f"Port {asked.port} of {HOST} is taken; give another with --port.") from None
    print(f"MLflow opens at http://{HOST}:{asked.port} in some seconds; Ctrl-C ends it.", flush=True)
    configure_mlflow()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    words = ["--backend-store-uri", store.uri, "--host", HOST, "--port", str(asked.port), "--workers", "1"]
    words += ["--default-artifact-root", (store.root / "artifacts").as_uri()]
    command = [sys.executable, "-m", "mlflow", "server", *words]
    os.execv(sys.executable, command)  # noqa: S606 (words of ours, and no shell)
